//! A decision record told in sentences.

use super::advice;
use crate::observe::{
    answers::{Attempt, Candidate, Decision, Timeouts},
    mesh::Member,
    table::{date_time, micros, millis, printable},
};

/// Characters of a line.
const WIDTH: usize = 100;

/// The story of one request as one proxy knows it.
pub(super) fn of(member: &Member, record: &Decision) -> Vec<String> {
    let mut story = Story::default();
    story.say("", &opening(member, record));
    story.say("", &routing(record));
    for (at, attempt) in record.attempts.iter().enumerate() {
        story.say("", &head(at, attempt));
        for sentence in attempt_sentences(attempt) {
            story.say("  ", &sentence);
        }
    }
    if record.attempts_untold > 0 {
        let untold = record.attempts_untold;
        story.say("", &format!("And {untold} attempts more, of which no more is known."));
    }
    if record.attempts.is_empty() && record.direction != "inbound" {
        let tried = match record.tried.as_slice() {
            [] => "No endpoint was tried.".to_owned(),
            tried => format!("Before it gave up it had tried {}.", tried.join(", ")),
        };
        story.say("", &tried);
    }
    story.say("", &limits(record));
    story.say("", &phases(record));
    story.say("", &next(member, record));
    story.lines
}

#[derive(Default)]
struct Story {
    lines: Vec<String>,
}

impl Story {
    /// One paragraph, its lines not longer than [`WIDTH`] where words allow.
    fn say(&mut self, indent: &str, text: &str) {
        let mut line = String::new();
        for word in printable(text).split_whitespace() {
            let long = indent.len() + line.chars().count() + 1 + word.chars().count() > WIDTH;
            if !line.is_empty() && long {
                self.lines.push(format!("{indent}{line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        if !line.is_empty() {
            self.lines.push(format!("{indent}{line}"));
        }
    }
}

/// Who, what, when, and what came of it.
fn opening(member: &Member, record: &Decision) -> String {
    let ago = |ago| format!(", which was over {} ago", millis(ago));
    let when = record.at_ms.map_or_else(
        || record.ago_ms.map_or_else(String::new, ago),
        |at| format!(", which was over at {} UTC", date_time(at)),
    );
    let inbound = record.direction == "inbound";
    let from = match (&record.peer, &record.client) {
        (Some(peer), Some(client)) => format!(" from {peer} at {client}"),
        (Some(peer), None) => format!(" from {peer}"),
        (None, Some(client)) if inbound => format!(" from {client}, which proved no identity"),
        (None, Some(client)) => format!(" from {client}"),
        (None, None) => String::new(),
    };
    let what = match record.method.as_str() {
        // Nothing of it was read.
        "" => "a connection".to_owned(),
        method => format!("{method} {}", record.path),
    };
    let whose = if inbound { "for its own application at" } else { "for" };
    let host = record.host.as_ref().map_or_else(String::new, |host| format!(", Host {host}"));
    format!(
        "The proxy of {member} took {what}{from}, {whose} {} ({}{host}){when}. {}",
        record.target,
        record.protocol,
        outcome(record)
    )
}

fn outcome(record: &Decision) -> String {
    let whole = record.phases.total_us.map(micros).or(record.elapsed_ms.map(millis));
    let after = whole.map_or_else(String::new, |whole| format!(" after {whole}"));
    let status = match (record.status, record.grpc_status) {
        (_, Some(grpc)) => format!("gRPC status {grpc}"),
        (Some(status), None) => status.to_string(),
        (None, None) => "a closed connection".to_owned(),
    };
    if let (Some(sent), Some(received)) = (record.sent_bytes, record.received_bytes) {
        let end = match (&record.reason, &record.error) {
            (Some(reason), Some(error)) => format!(" It ended with {reason}: {error}."),
            _ => String::new(),
        };
        return format!(
            "It was over{after}; {sent} bytes had gone there, and {received} had come back.{end}"
        );
    }
    if record.client_left {
        return match record.status {
            None => format!("Its client went away{after}, before there was an answer."),
            Some(_) => {
                format!("The answer was {status}; its client went away{after}, before its end.")
            }
        };
    }
    match (&record.reason, &record.error) {
        (Some(reason), Some(error)) => {
            format!("The proxy itself gave the answer{after}: {status}, {reason}: {error}.")
        }
        (Some(reason), None) => {
            format!("The proxy itself gave the answer{after}: {status}, {reason}.")
        }
        (None, Some(error)) => {
            format!("The answer was {status}{after}, and then it broke: {error}.")
        }
        (None, None) => format!("The answer was {status}{after}."),
    }
}

/// Which route, or which policy, and why.
fn routing(record: &Decision) -> String {
    if record.direction == "inbound" {
        return record.policy.as_ref().map_or_else(String::new, |policy| {
            let what =
                if record.reason.as_deref() == Some("denied") { "refuses" } else { "lets in" };
            format!("Its policy ({policy}) {what} this caller.")
        });
    }
    let why = record.route_why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    let route = match &record.route {
        Some(route) => format!("The route {route} took it{why}."),
        None => format!("No route took it{why}."),
    };
    match &record.service {
        Some(service) if *service != record.target => format!("{route} It went to {service}."),
        _ => route,
    }
}

fn head(at: usize, attempt: &Attempt) -> String {
    let start = attempt.start_us.map_or_else(String::new, |us| format!(", {} in", micros(us)));
    let Some(endpoint) = &attempt.endpoint else {
        return format!("Attempt {}{start}: there was no endpoint to choose.", at + 1);
    };
    let pod = match attempt.pod.as_str() {
        "" => String::new(),
        pod => format!(", pod {pod}"),
    };
    let tls = match (attempt.tls.as_str(), &attempt.identity) {
        ("mtls", Some(identity)) => format!(", over mTLS to {identity}"),
        ("mtls", None) => ", over mTLS".to_owned(),
        ("none", _) => ", in plaintext since it has no identity".to_owned(),
        _ => String::new(),
    };
    format!("Attempt {}{start}: {endpoint}{pod}{tls}.", at + 1)
}

fn attempt_sentences(attempt: &Attempt) -> Vec<String> {
    let mut sentences = Vec::new();
    sentences.extend(choice(attempt));
    if attempt.endpoint.is_some() {
        sentences.push(came_of_it(attempt));
    }
    // The record has the state after the request, which the attempt itself may have brought about.
    if matches!(attempt.breaker.as_str(), "open" | "half-open") {
        sentences.push(format!("Afterwards its breaker was {}.", attempt.breaker));
    }
    sentences.extend(verdict(attempt));
    sentences
}

/// Why this endpoint.
fn choice(attempt: &Attempt) -> Option<String> {
    let endpoint = attempt.endpoint.as_deref()?;
    let own = attempt.candidates.iter().find(|candidate| candidate.endpoint == endpoint);
    let other = attempt.candidates.iter().find(|candidate| candidate.endpoint != endpoint);
    let compared = match (own.and_then(cost), other.and_then(|other| Some((other, cost(other)?)))) {
        (Some(own), Some((other, theirs))) => {
            format!(": {own}, against {theirs} at {}", other.endpoint)
        }
        (Some(own), None) => format!(": {own}"),
        (None, _) => String::new(),
    };
    let why = match attempt.chosen.as_str() {
        "" => return None,
        "lower-cost" => "It was the cheaper of two drawn at random",
        "fewer-in-flight" => {
            "Of two drawn at random that cost about the same it had no more requests in flight"
        }
        "spill-over" => "Those near by cost too much",
        "only-one" => "It was the only one that could be taken",
        "affinity" => "The session stays with it",
        "hash" => "The hash of the request leads to it",
        "probe" => "It was due for a probe, which decides whether it takes traffic again",
        "round-robin" => "It was its turn",
        "random" => "It was drawn at random",
        other => return Some(format!("It was chosen by {other}{compared}.")),
    };
    Some(format!("{why}{compared}."))
}

fn cost(candidate: &Candidate) -> Option<String> {
    match (candidate.cost_ms, candidate.in_flight) {
        (Some(cost), Some(n)) => Some(format!("cost {} with {n:.0} in flight", millis(cost))),
        (Some(cost), None) => Some(format!("cost {}", millis(cost))),
        (None, Some(n)) => Some(format!("{n:.0} in flight")),
        (None, None) => None,
    }
}

fn came_of_it(attempt: &Attempt) -> String {
    let connection = match attempt.connect_us {
        Some(us) => format!("A new connection took {}", micros(us)),
        // One that could not be made is told below.
        None if attempt.reason.as_deref().is_some_and(|reason| reason.starts_with("connect-")) => {
            "There was no connection".to_owned()
        }
        // Nobody waited to see.
        None if attempt.verdict == "given-up" => "It was on its way".to_owned(),
        None => "An open connection was reused".to_owned(),
    };
    let status = match (attempt.grpc_status, attempt.status) {
        (Some(grpc), _) => Some(format!("gRPC status {grpc}")),
        (None, status) => status.map(|status| status.to_string()),
    };
    let answer = match (status, attempt.head_us) {
        (Some(status), Some(us)) => format!(", and the answer {status} began {} in", micros(us)),
        (Some(status), None) => format!(", and the answer was {status}"),
        (None, _) => String::new(),
    };
    let failure = match (&attempt.reason, &attempt.error) {
        (Some(reason), Some(error)) => format!("; it failed with {reason}: {error}"),
        (Some(what), None) | (None, Some(what)) => format!("; it failed with {what}"),
        (None, None) => String::new(),
    };
    let failed = attempt.reason.is_some() || attempt.error.is_some();
    let ran = match attempt.may_have_run.as_str() {
        "no" => " The application has not seen the request.",
        "maybe" => " The application may have seen the request.",
        "yes" if failed => " The application has seen the request.",
        _ => "",
    };
    format!("{connection}{answer}{failure}.{ran}")
}

/// Why it was tried again, or not.
fn verdict(attempt: &Attempt) -> Option<String> {
    let pause = attempt.backoff_us.filter(|us| *us > 0);
    let pause = pause.map_or_else(String::new, |us| format!(" after a pause of {}", micros(us)));
    Some(match attempt.verdict.as_str() {
        "" | "done" => return None,
        "given-up" => "The client did not wait for what would come of it.".to_owned(),
        "retry" => format!("So it was tried again{pause}."),
        "limit" => "It was not tried again: the limit of retries was reached.".to_owned(),
        "budget" => "It was not tried again: the retry budget was spent.".to_owned(),
        "pushback" => "It was not tried again: the server asked not to be.".to_owned(),
        "not-retryable" => "It was not tried again: nothing says that a repetition is safe, since \
                            such a failure is not among those that retry annotations or the route \
                            name."
            .to_owned(),
        "not-replayable" => "It was not tried again: its body was not kept, being too large or \
                             still on its way."
            .to_owned(),
        other => format!("It was not tried again: {other}."),
    })
}

/// Time-outs and the budget in force.
fn limits(record: &Decision) -> String {
    let Some(Timeouts { request_ms, response_ms, per_try_ms, idle_ms, connect_ms }) =
        record.timeouts
    else {
        return String::new();
    };
    let named = [
        ("request", request_ms),
        ("response", response_ms),
        ("per try", per_try_ms),
        ("idle", idle_ms),
        ("connect", connect_ms),
    ];
    let set: Vec<String> = named
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} {}", millis(value?))))
        .collect();
    let timeouts = match set.as_slice() {
        [] => "No time-out was in force.".to_owned(),
        set => format!("Time-outs in force: {}.", set.join(", ")),
    };
    let budget = record
        .retry_budget_left
        .map_or_else(String::new, |left| format!(" The retry budget allowed {left:.0} more."));
    format!("{timeouts}{budget}")
}

/// Where the time went.
fn phases(record: &Decision) -> String {
    let named = [
        ("waiting for a place", record.phases.wait_us),
        ("finding out what the destination is", record.phases.resolve_us),
        ("until the answer began", record.phases.head_us),
        ("until it ended", record.phases.total_us),
    ];
    let spent: Vec<String> = named
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{} {name}", micros(value.filter(|us| *us > 0)?))))
        .collect();
    match spent.as_slice() {
        [] => String::new(),
        spent => format!("The time: {}.", spent.join(", ")),
    }
}

/// What to do.
fn next(member: &Member, record: &Decision) -> String {
    if let Some(reason) = record.reason.as_deref() {
        let advice = advice::of(reason).unwrap_or("This version has no advice for that reason.");
        return format!("What to do: {advice} See {}.", advice::page(reason));
    }
    if record.client_left && record.status.is_none() {
        return "What to do: A client ends a request that takes longer than its own time-out, or that it \
                has no more use for. See how long the attempts took, and compare."
            .to_owned();
    }
    let blames = record.status.is_some_and(|status| status >= 500) || record.error.is_some();
    if !record.failed.unwrap_or(blames) {
        return String::new();
    }
    let last = record.attempts.last().map(|attempt| attempt.pod.as_str());
    let pod = match record.direction.as_str() {
        "inbound" => Some(member.pod.as_str()),
        _ => last.filter(|pod| !pod.is_empty()),
    };
    let whose = pod.map_or_else(|| "its log".to_owned(), |pod| format!("the log of pod {pod}"));
    format!("What to do: The application made this answer: see {whose}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        answers::Decisions,
        mesh::Way,
        testing::{golden, recorded},
    };

    fn member(pod: &str) -> Member {
        let way = Way::Forward { port: 4191 };
        Member { namespace: "shop".to_owned(), pod: pod.to_owned(), way }
    }

    fn told(file: &str, pod: &str) -> Vec<String> {
        let answer: Decisions = recorded(file);
        of(&member(pod), &answer.decisions[0])
    }

    #[test]
    fn a_request_that_was_retried_is_told_attempt_by_attempt() {
        golden("why-retried.txt", &told("decision-retried.json", "frontend-0"));
    }

    #[test]
    fn what_the_proxy_answered_itself_is_told_with_the_next_step() {
        golden("why-refused.txt", &told("decision-no-endpoints.json", "frontend-0"));
    }

    #[test]
    fn a_client_that_left_is_told_with_the_endpoint_that_kept_it_waiting() {
        golden("why-left.txt", &told("decision-left.json", "frontend-0"));
    }

    #[test]
    fn the_other_side_tells_who_called_and_which_policy_let_it_in() {
        golden("why-inbound.txt", &told("decision-inbound.json", "orders-1"));
    }

    #[test]
    fn a_connection_of_bytes_is_told_by_what_it_carried() {
        let record = Decision {
            direction: "outbound".to_owned(),
            target: "shop/db:3306".to_owned(),
            service: Some("shop/db:3306".to_owned()),
            protocol: "tcp".to_owned(),
            sent_bytes: Some(120),
            received_bytes: Some(4000),
            elapsed_ms: Some(1500.0),
            ..Decision::default()
        };
        let told = |record: &Decision| of(&member("a"), record).join(" ");
        let story = told(&record);
        let carried = "It was over after 1.5 s; 120 bytes had gone there, and 4000 had come back.";
        assert!(story.contains("took a connection, for shop/db:3306 (tcp)"), "{story}");
        assert!(story.contains(carried) && !story.contains("What to do"), "{story}");
        let reason = Some("response-timeout".to_owned());
        let error = Some("nothing came for 5s".to_owned());
        let story = told(&Decision { reason, error, failed: Some(true), ..record });
        assert!(story.contains("It ended with response-timeout: nothing came"), "{story}");
        assert!(story.contains("docs/reasons.md#response-timeout"), "{story}");
    }

    #[test]
    fn a_record_of_an_older_proxy_is_told_as_far_as_it_goes() {
        let record = Decision {
            ago_ms: Some(1500.0),
            direction: "outbound".to_owned(),
            target: "shop/a:80".to_owned(),
            method: "GET".to_owned(),
            path: "/".to_owned(),
            protocol: "http/1.1".to_owned(),
            status: Some(503),
            reason: Some("connect-failed".to_owned()),
            tried: vec!["10.0.0.1:80".to_owned()],
            ..Decision::default()
        };
        let story = of(&member("a"), &record).join(" ");
        let begin =
            "The proxy of shop/a took GET /, for shop/a:80 (http/1.1), which was over 1.5 s ago.";
        assert!(story.starts_with(begin), "{story}");
        assert!(story.contains("it had tried 10.0.0.1:80."), "{story}");
        assert!(story.contains("docs/reasons.md#connect-failed"), "{story}");
    }

    #[test]
    fn every_verdict_says_why_there_was_no_other_try() {
        for word in ["limit", "budget", "pushback", "not-retryable", "not-replayable", "new"] {
            let attempt = Attempt { verdict: word.to_owned(), ..Attempt::default() };
            let said = verdict(&attempt).unwrap();
            assert!(said.starts_with("It was not tried again: "), "{said}");
        }
        let done = Attempt { verdict: "done".to_owned(), ..Attempt::default() };
        assert_eq!(verdict(&done), None);
    }

    #[test]
    fn nothing_in_a_record_reaches_the_terminal_as_a_command() {
        let record = Decision { path: "/\u{1b}[2J".to_owned(), ..Decision::default() };
        assert!(!of(&member("a"), &record).join("\n").contains('\u{1b}'));
    }
}
