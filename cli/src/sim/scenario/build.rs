//! What a file means, checked: every problem is said with its line and the mend.

use std::time::Duration;

use http::Method;
use serde_saphyr::Spanned;

use super::{
    Behaviour, Clients, Failure, Group, Load, MAX_CONCURRENCY, MAX_EVENTS, MAX_EXPECTATIONS,
    MAX_POLICIES, MAX_PROXIES, MAX_REQUESTS, MAX_SERVERS, NamedPolicy, Scenario, ScenarioError,
    Server,
    file::{self, Entry, File, Names, Table, Word},
    timeline::{self, Change, Move, NewLoad, Override, Step, What},
    words,
};
use crate::sim::{
    adapter::{self, Rules},
    expect::{self, Expectation},
};

/// Requests that may wait at a server, where nothing is said.
const QUEUE: u32 = 100;
/// Most that may be said.
const MAX_QUEUE: u32 = 1_000_000;
/// Longest name; more would spoil the tables.
const MAX_NAME: usize = 24;

type Checked<T> = Result<T, ScenarioError>;

pub(super) fn scenario(name: &str, file: File) -> Checked<Scenario> {
    let duration = read("duration", &file.duration, words::duration)?;
    if duration < Duration::from_secs(1) {
        return at(line(&file.duration), "duration: simulate at least 1s");
    }
    let warmup = optional("warmup", file.warmup.as_ref(), words::duration)?.unwrap_or_default();
    if warmup >= duration {
        let place = file.warmup.as_ref().map_or(1, line);
        return at(place, "warmup: leave something to measure: make it shorter than duration");
    }
    let (servers, groups) = servers(file.servers)?;
    let mut scenario = Scenario {
        name: name.to_owned(),
        about: file.about.unwrap_or_default().trim().to_owned(),
        seed: file.seed.unwrap_or(1),
        duration,
        warmup,
        network: optional("network", file.network.as_ref(), words::duration)?
            .unwrap_or(Duration::from_millis(1)),
        discovery: optional("discovery", file.discovery.as_ref(), words::duration)?
            .unwrap_or(Duration::from_millis(100)),
        servers,
        groups,
        clients: clients(file.clients, duration)?,
        policies: policies(file.policies)?,
        expect: Vec::new(),
        changes: Vec::new(),
        moves: Vec::new(),
        disturbances: Vec::new(),
    };
    events(&mut scenario, &file.events)?;
    bound_requests(&scenario, line(&file.duration))?;
    scenario.expect = expectations(&scenario, &file.expect)?;
    Ok(scenario)
}

fn at<T>(line: u64, problem: impl Into<String>) -> Checked<T> {
    Err(ScenarioError { line, problem: problem.into() })
}

fn line<T>(value: &Spanned<T>) -> u64 {
    value.referenced.line()
}

fn read<T>(
    field: &str,
    word: &Spanned<Word>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Checked<T> {
    parse(&word.value.0).or_else(|problem| at(line(word), format!("{field}: {problem}")))
}

fn optional<T>(
    field: &str,
    word: Option<&Spanned<Word>>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Checked<Option<T>> {
    word.map(|word| read(field, word, parse)).transpose()
}

fn check_name<T>(entry: &Entry<T>) -> Checked<()> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let name = &entry.name;
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fits) && name != "all" {
        return Ok(());
    }
    let rule = format!("use up to {MAX_NAME} of a-z, 0-9 and -, and not all");
    at(entry.line, format!("{name:?} is no name here; {rule}"))
}

fn servers(table: Table<file::Server>) -> Checked<(Vec<Server>, Vec<Group>)> {
    let mut servers: Vec<Server> = Vec::new();
    let mut groups = Vec::new();
    for entry in table.0 {
        check_name(&entry)?;
        let Entry { name, line, value: file } = entry;
        let count = |s: &str| words::count(s, 1, MAX_SERVERS);
        let count = optional("count", file.count.as_ref(), count)?;
        let new = Override {
            latency: None,
            concurrency: optional("concurrency", file.concurrency.as_ref(), concurrency)?,
            queue: optional("queue", file.queue.as_ref(), queue)?,
            rate_limit: optional("rate-limit", file.rate_limit.as_ref(), words::rate)?,
            failures: file.fail.as_ref().map(failures).transpose()?,
            fail_latency: optional("fail-latency", file.fail_latency.as_ref(), str::parse)?,
            retry_after: optional("retry-after", file.retry_after.as_ref(), retry_after)?,
        };
        let behaviour = Behaviour {
            latency: read("latency", &file.latency, str::parse)?,
            concurrency: new.concurrency,
            queue: new.queue.unwrap_or(QUEUE),
            rate_limit: new.rate_limit,
            failures: new.failures.unwrap_or_default(),
            fail_latency: new.fail_latency,
            retry_after: new.retry_after,
        };
        let first = servers.len();
        for number in 1..=count.unwrap_or(1) {
            let name = if count.is_some() { format!("{name}-{number}") } else { name.clone() };
            if servers.iter().any(|server| server.name == name) {
                return at(line, format!("there are two servers {name:?}; rename one"));
            }
            servers.push(Server { name, behaviour: behaviour.clone() });
        }
        if servers.len() > MAX_SERVERS as usize {
            return at(line, format!("more than {MAX_SERVERS} servers; lower count"));
        }
        groups.push(Group { name, members: first..servers.len() });
    }
    if servers.is_empty() {
        return at(1, "servers: there is none; write for example  a: {latency: 5ms}");
    }
    Ok((servers, groups))
}

fn concurrency(s: &str) -> Result<u32, String> {
    words::count(s, 1, 1_000_000)
}

fn queue(s: &str) -> Result<u32, String> {
    words::count(s, 0, MAX_QUEUE)
}

/// HTTP has whole seconds.
fn retry_after(s: &str) -> Result<u32, String> {
    let time = words::duration(s)?;
    let whole = time.subsec_nanos() == 0;
    let seconds = u32::try_from(time.as_secs()).ok().filter(|_| whole);
    seconds.ok_or_else(|| format!("{s:?}: Retry-After has whole seconds"))
}

fn failures(table: &Table<Word>) -> Checked<Vec<(Failure, f64)>> {
    let mut failures = Vec::new();
    for Entry { name, line, value } in &table.0 {
        let status = || name.parse().ok().filter(|n| *n == 429 || (500..=599).contains(n));
        let kind = match name.as_str() {
            "5xx" => Failure::Status(503),
            "connect" => Failure::Connect,
            "hang" => Failure::Hang,
            "reset" => Failure::Reset,
            _ => match status() {
                Some(status) => Failure::Status(status),
                None => {
                    let known = "use 5xx (503), 429, 500 to 599, connect, hang or reset";
                    return at(*line, format!("fail: {name:?} is no kind of failure; {known}"));
                }
            },
        };
        let share = words::share(&value.0);
        let share = share.or_else(|problem| at(*line, format!("fail: {name}: {problem}")))?;
        failures.push((kind, share));
    }
    let sum: f64 = failures.iter().map(|(_, share)| share).sum();
    let place = table.0.first().map_or(1, |entry| entry.line);
    // Shares such as 0.1 do not add up exactly.
    if sum > 1.0 + 1e-9 {
        at(place, format!("fail: shares add up to {sum}, more than 1"))
    } else {
        Ok(failures)
    }
}

fn clients(table: Table<file::Clients>, duration: Duration) -> Checked<Vec<Clients>> {
    let mut all: Vec<Clients> = Vec::new();
    for entry in table.0 {
        check_name(&entry)?;
        let Entry { name, line: place, value: file } = entry;
        let count = |s: &str| words::count(s, 1, MAX_PROXIES);
        let users = |s: &str| words::count(s, 1, MAX_CONCURRENCY);
        let rate = optional("rate", file.rate.as_ref(), words::rate)?;
        let users = optional("concurrency", file.concurrency.as_ref(), users)?;
        let think = optional("think", file.think.as_ref(), words::duration)?;
        let load = match (rate, users, think) {
            (Some(rate), None, None) => Load::Open { rate },
            (None, Some(users), think) => Load::Closed { users, think: think.unwrap_or_default() },
            (Some(_), None, Some(_)) => {
                return at(
                    place,
                    format!("clients {name:?}: think goes with concurrency, not rate"),
                );
            }
            _ => {
                let mend = "say either rate (requests a second) or concurrency (at a time)";
                return at(place, format!("clients {name:?}: {mend}"));
            }
        };
        let start = optional("start", file.start.as_ref(), words::duration)?.unwrap_or_default();
        let stop = optional("stop", file.stop.as_ref(), words::duration)?.unwrap_or(duration);
        if start >= stop {
            return at(place, format!("clients {name:?}: stop is not after start"));
        }
        let method = optional("method", file.method.as_ref(), method)?.unwrap_or(Method::GET);
        let count = optional("count", file.count.as_ref(), count)?.unwrap_or(1);
        all.push(Clients { name, count, method, load, active: start..stop.min(duration) });
        if all.iter().map(|clients| clients.count).sum::<u32>() > MAX_PROXIES {
            return at(place, format!("more than {MAX_PROXIES} proxies; lower count"));
        }
    }
    if all.is_empty() {
        return at(1, "clients: there is none; write for example  web: {count: 10, rate: 50}");
    }
    Ok(all)
}

fn method(s: &str) -> Result<Method, String> {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let method = known.contains(&s).then(|| s.parse().ok()).flatten();
    method.ok_or_else(|| format!("{s:?}: use one of {}", known.join(", ")))
}

fn policies(table: Table<Table<Word>>) -> Checked<Vec<NamedPolicy>> {
    let mut policies = Vec::new();
    let now = adapter::epoch();
    for entry in table.0 {
        check_name(&entry)?;
        let Entry { name, line: place, value: table } = entry;
        let words: Vec<_> = table.0.iter().map(|w| (w.name.clone(), w.value.0.clone())).collect();
        let rules = Rules::parse(&words, now).or_else(|bad| {
            let word = table.0.iter().find(|word| word.name == bad.word);
            let place = word.map_or(place, |word| word.line);
            let field = word.map_or(String::new(), |word| format!("{}: ", word.name));
            at(place, format!("policy {name:?}: {field}{}", bad.problem))
        })?;
        policies.push(NamedPolicy { name, words, rules });
        if policies.len() > MAX_POLICIES {
            return at(place, format!("more than {MAX_POLICIES} policies; leave some out"));
        }
    }
    if policies.is_empty() {
        let rules = Rules::parse(&[], now).or_else(|bad| at(1, bad.problem))?;
        policies.push(NamedPolicy { name: "default".to_owned(), words: Vec::new(), rules });
    }
    Ok(policies)
}

fn events(scenario: &mut Scenario, events: &[Spanned<file::Event>]) -> Checked<()> {
    let mut disturbances = Vec::new();
    let mut count = 0;
    for event in events {
        let place = line(event);
        let event = &event.value;
        let start = read("at", &event.at, words::duration)?;
        let lasts = optional("for", event.lasts.as_ref(), words::positive)?;
        let every = optional("every", event.every.as_ref(), words::positive)?;
        if every.is_some() && every <= lasts {
            return at(place, "event: every is not longer than for, so it would never be over");
        }
        let effect = effect(scenario, event, place)?;
        let mut now = start;
        while now < scenario.duration {
            count += 1;
            if count > MAX_EVENTS {
                return at(place, format!("more than {MAX_EVENTS} events; make every longer"));
            }
            let until = lasts.map(|lasts| now + lasts);
            happen(scenario, &effect, now, until);
            match (until, &effect) {
                (Some(until), _) => disturbances.push(now..until),
                (None, Effect::Move(..)) => disturbances.push(now..now),
                (None, Effect::Change(_)) => {}
            }
            let Some(every) = every else { break };
            now += every;
        }
        if start >= scenario.duration {
            return at(line(&event.at), "at: this is after the end; see duration");
        }
    }
    for clients in &scenario.clients {
        let surge = clients.active.start > Duration::ZERO && clients.active.end < scenario.duration;
        disturbances.extend(surge.then(|| clients.active.clone()));
    }
    scenario.disturbances = timeline::merge(disturbances);
    timeline::sort(&mut scenario.changes);
    Ok(())
}

enum Effect {
    Change(What),
    Move(Vec<usize>, Step),
}

fn happen(scenario: &mut Scenario, effect: &Effect, now: Duration, until: Option<Duration>) {
    match effect {
        Effect::Change(what) => {
            scenario.changes.push(Change { at: now, until, what: what.clone() });
        }
        Effect::Move(servers, step) => {
            for &server in servers {
                scenario.moves.push(Move { at: now, server, step: *step });
                let back = if *step == Step::Join { Step::Leave } else { Step::Join };
                scenario.moves.extend(until.map(|at| Move { at, server, step: back }));
            }
        }
    }
}

fn effect(scenario: &Scenario, event: &file::Event, place: u64) -> Checked<Effect> {
    let new = Override {
        latency: optional("latency", event.latency.as_ref(), str::parse)?,
        concurrency: optional("concurrency", event.concurrency.as_ref(), concurrency)?,
        queue: optional("queue", event.queue.as_ref(), queue)?,
        rate_limit: optional("rate-limit", event.rate_limit.as_ref(), words::rate)?,
        failures: event.fail.as_ref().map(failures).transpose()?,
        fail_latency: optional("fail-latency", event.fail_latency.as_ref(), str::parse)?,
        retry_after: optional("retry-after", event.retry_after.as_ref(), retry_after)?,
    };
    let rate = optional("rate", event.rate.as_ref(), words::rate)?;
    let step = optional("do", event.moves.as_ref(), step)?;
    match (&event.server, &event.client) {
        (Some(names), None) if rate.is_none() => {
            let servers = named(names, &scenario.groups, &scenario.servers, place)?;
            match step {
                Some(step) if new == Override::default() => Ok(Effect::Move(servers, step)),
                Some(_) => {
                    at(place, "event: do stands alone; write an event of its own for the rest")
                }
                None if new == Override::default() => {
                    at(place, "event: nothing happens; add for example latency: 200ms or do: crash")
                }
                None => Ok(Effect::Change(What::Servers(servers, new))),
            }
        }
        (None, Some(names)) => {
            let only_users = Override { concurrency: new.concurrency, ..Override::default() };
            let load = match (rate, new.concurrency) {
                (Some(rate), None) => NewLoad::Rate(rate),
                (None, Some(users)) if users <= MAX_CONCURRENCY => NewLoad::Users(users),
                _ => return at(place, "event: clients change their rate or their concurrency"),
            };
            if new != only_users || step.is_some() {
                return at(place, "event: clients change their rate or their concurrency only");
            }
            let groups = groups_of_clients(scenario, names, load, place)?;
            Ok(Effect::Change(What::Clients(groups, load)))
        }
        _ => at(place, "event: say server: NAME with what it does, or client: NAME with its rate"),
    }
}

fn step(s: &str) -> Result<Step, String> {
    match s {
        "join" => Ok(Step::Join),
        "leave" => Ok(Step::Leave),
        "crash" => Ok(Step::Crash),
        _ => Err(format!("{s:?}: use join, leave or crash")),
    }
}

fn named(names: &Names, groups: &[Group], servers: &[Server], place: u64) -> Checked<Vec<usize>> {
    let mut found = Vec::new();
    for name in &names.0 {
        let members = expect::members(name, groups, servers);
        let Some(members) = members else {
            let known: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
            let known = known.join(", ");
            return at(place, format!("event: no server {name:?}; there are {known}, and all"));
        };
        found.extend(members);
    }
    Ok(found)
}

fn groups_of_clients(
    scenario: &Scenario,
    names: &Names,
    load: NewLoad,
    place: u64,
) -> Checked<Vec<usize>> {
    let mut found = Vec::new();
    for name in &names.0 {
        let all = scenario.clients.iter().enumerate();
        let group = all.filter(|(_, clients)| clients.name == *name || name == "all");
        let before = found.len();
        found.extend(group.map(|(index, _)| index));
        if found.len() == before {
            let known: Vec<&str> = scenario.clients.iter().map(|c| c.name.as_str()).collect();
            let known = known.join(", ");
            return at(place, format!("event: no client {name:?}; there are {known}, and all"));
        }
    }
    let fits = |group: &usize| {
        let open = matches!(scenario.clients[*group].load, Load::Open { .. });
        open == matches!(load, NewLoad::Rate(_))
    };
    if found.iter().all(fits) {
        return Ok(found);
    }
    at(place, "event: a client with rate changes its rate, one with concurrency its concurrency")
}

fn bound_requests(scenario: &Scenario, place: u64) -> Checked<()> {
    let expected = scenario.open_requests();
    if expected <= f64::from(MAX_REQUESTS) {
        return Ok(());
    }
    let mend = "lower duration, rate or count";
    at(place, format!("about {expected:.0} requests, more than {MAX_REQUESTS}; {mend}"))
}

fn expectations(scenario: &Scenario, lines: &[Spanned<String>]) -> Checked<Vec<Expectation>> {
    if lines.len() > MAX_EXPECTATIONS {
        return at(line(&lines[0]), format!("more than {MAX_EXPECTATIONS} expectations"));
    }
    let read = |text: &Spanned<String>| {
        Expectation::parse(&text.value, scenario)
            .or_else(|problem| at(line(text), format!("expect: {problem}")))
    };
    lines.iter().map(read).collect()
}
