//! `remora why-endpoint ADDRESS`: how an address became an endpoint, and what has come of it since:
//! the event, the update to each proxy, its first connection, its last success and failure.

use std::{net::SocketAddr, process::ExitCode};

use serde::Serialize;

use super::{
    Asked, EXIT_STATUS,
    answers::{Endpoints, Events, WhyEndpoint},
    colours, drive,
    error::Error,
    mesh::{Answers, Asker, Member, Mesh, Unanswered, each},
    place::Place,
    print, print_json,
    table::{Align, Colours, Look, Table, date_time, known, millis},
};

/// `remora why-endpoint`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// Address and port of the endpoint, as `remora endpoints` shows it: 10.0.0.7:8080
    address: SocketAddr,
    /// Print {mesh, proxies, unreachable, left_out, address, states, story, pushes_left_out}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Runs it: status 0 where somebody knows the address.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    drive(&args.place, async |mesh| {
        let address = args.address.to_string();
        let proxies = mesh.proxies(&args.place).await?;
        let mut askers = mesh.askers(&proxies.members);
        let (planes, known) = tokio::join!(
            planes(mesh, &address),
            each(&mut askers, async |asker| history(asker, &address).await)
        );
        let Answers { given, silent } = known;
        if given.is_empty() && planes.given.is_empty() {
            return Err(Error::Silence { silent });
        }
        let story = Story::of(&planes.given, &given);
        if story.steps.is_empty() && story.states.is_empty() {
            return Err(Error::Unknown(format!(
                "neither the control plane nor any of the {} proxies that answer knows {address}; \
                 `remora endpoints` shows what they know",
                given.len()
            )));
        }
        let asked = Asked::of(mesh, &proxies, &silent);
        if args.json {
            print_json(&Shown { asked, address: &address, story })?;
        } else {
            let lines = story.lines(&address, colours());
            print(|out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))?;
            asked.say();
            for plane in &planes.silent {
                eprintln!("remora: no answer from {}: {}", plane.member, plane.why);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    asked: Asked<'a>,
    address: &'a str,
    #[serde(flatten)]
    story: Story,
}

/// What each replica of the control plane says; none where they cannot be listed.
async fn planes(mesh: &Mesh, address: &str) -> Answers<WhyEndpoint> {
    let members = match mesh.control_planes().await {
        Ok(members) => members,
        Err(error) => {
            eprintln!("remora: {error}");
            Vec::new()
        }
    };
    let mut askers = mesh.askers(&members);
    // An address has nothing that a query would have to escape.
    let path = format!("/why-endpoint?address={address}");
    each(&mut askers, async |asker| asker.json(&path).await).await
}

/// What one proxy knows of an address.
#[derive(Debug, Default)]
struct History {
    endpoints: Endpoints,
    events: Events,
}

async fn history(asker: &mut Asker<'_>, address: &str) -> Result<History, Unanswered> {
    let mut endpoints: Endpoints = asker.json("/endpoints").await?;
    for service in &mut endpoints.services {
        service.endpoints.retain(|endpoint| endpoint.address == address);
    }
    endpoints.services.retain(|service| !service.endpoints.is_empty());
    // An older proxy has none.
    let mut events: Events = asker.json("/events").await.unwrap_or_default();
    events.events.retain(|event| event.endpoint == address);
    Ok(History { endpoints, events })
}

/// All that happened, by time, and what is now.
#[derive(Debug, Default, Serialize)]
struct Story {
    states: Vec<State>,
    #[serde(rename = "story")]
    steps: Vec<Step>,
    /// Updates to other proxies, which the control plane does not tell one by one.
    pushes_left_out: u64,
}

/// What somebody says that the endpoint is now.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct State {
    /// `namespace/name:port`
    service: String,
    /// `control plane`, or a proxy's pod.
    according_to: String,
    state: String,
}

/// Something that happened to it.
#[derive(Debug, PartialEq, Serialize)]
struct Step {
    /// Unix milliseconds.
    at_ms: i64,
    /// Milliseconds since the event that made it an endpoint, where that is known.
    after_event_ms: Option<i64>,
    service: String,
    /// `control plane`, or a proxy's pod.
    at: String,
    what: String,
}

const CONTROL_PLANE: &str = "control plane";

impl Story {
    fn of(planes: &[(Member, WhyEndpoint)], proxies: &[(Member, History)]) -> Self {
        let mut story = Self::default();
        for (_, answer) in planes {
            for placed in &answer.services {
                let service = format!("{}/{}:{}", placed.namespace, placed.name, placed.port);
                story.state(&service, CONTROL_PLANE, &placed.state);
                let event = format!("event: it became {}", placed.state);
                story.step(placed.event_ms, &service, CONTROL_PLANE, &event);
                story.pushes_left_out += placed.pushes_left_out;
                for push in &placed.pushes {
                    let proxy = format!("{}/{}", push.namespace, push.pod);
                    story.step(push.sent_ms, &service, CONTROL_PLANE, &format!("sent to {proxy}"));
                    story.step(push.acked_ms, &service, &proxy, "confirmed");
                }
            }
        }
        for (member, history) in proxies {
            let proxy = member.to_string();
            for service in &history.endpoints.services {
                let id = format!("{}/{}:{}", service.namespace, service.name, service.port);
                for endpoint in &service.endpoints {
                    story.state(&id, &proxy, &endpoint.state);
                    let history = &endpoint.history;
                    story.step(history.applied_ms, &id, &proxy, "applied");
                    story.step(history.first_dial_ms, &id, &proxy, "first connection");
                    story.step(history.last_success_ms, &id, &proxy, "last success");
                    story.step(history.last_failure_ms, &id, &proxy, "last failure");
                }
            }
            for event in &history.events.events {
                let reason = match event.reason.as_str() {
                    "" => String::new(),
                    reason => format!(": {reason}"),
                };
                let penalty = event
                    .penalty_ms
                    .map_or_else(String::new, |penalty| format!(", for {}", millis(penalty)));
                let what = format!("{}{reason}{penalty}", event.kind);
                story.step(Some(event.at_ms), &event.service, &proxy, &what);
            }
        }
        story.finish()
    }

    fn state(&mut self, service: &str, according_to: &str, state: &str) {
        let (service, according_to) = (service.to_owned(), according_to.to_owned());
        let state = State { service, according_to, state: state.to_owned() };
        if !self.states.contains(&state) {
            self.states.push(state);
        }
    }

    fn step(&mut self, at_ms: Option<i64>, service: &str, at: &str, what: &str) {
        let Some(at_ms) = at_ms else { return };
        let (service, at, what) = (service.to_owned(), at.to_owned(), what.to_owned());
        self.steps.push(Step { at_ms, after_event_ms: None, service, at, what });
    }

    /// By time, with the time since the Service's event.
    fn finish(mut self) -> Self {
        let key =
            |step: &Step| (step.at_ms, step.service.clone(), step.at.clone(), step.what.clone());
        self.steps.sort_by_cached_key(key);
        // Two replicas tell the same.
        self.steps.dedup();
        let event_of = |service: &str| {
            let is = |step: &&Step| step.service == service && step.what.starts_with("event:");
            self.steps.iter().find(is).map(|step| step.at_ms)
        };
        let after: Vec<Option<i64>> = self
            .steps
            .iter()
            .map(|step| Some(step.at_ms - event_of(&step.service)?).filter(|after| *after >= 0))
            .collect();
        for (step, after) in self.steps.iter_mut().zip(after) {
            step.after_event_ms = after;
        }
        self
    }

    fn lines(&self, address: &str, colours: Colours) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut services: Vec<&str> = self.states.iter().map(|s| s.service.as_str()).collect();
        services.sort_unstable();
        services.dedup();
        for service in services {
            let mut by_state: Vec<(&str, Vec<&str>)> = Vec::new();
            for state in self.states.iter().filter(|state| state.service == service) {
                let who = state.according_to.as_str();
                match by_state.iter_mut().find(|(known, _)| *known == state.state) {
                    Some((_, all)) => all.push(who),
                    None => by_state.push((&state.state, vec![who])),
                }
            }
            let said = by_state.iter().map(|(state, who)| format!("{state} ({})", some(who)));
            let said: Vec<String> = said.collect();
            lines.push(format!("{address} in {service}: {}", said.join("; ")));
        }
        if self.steps.is_empty() {
            lines.push("No times are known: the programs are of an older version.".to_owned());
            return lines;
        }
        let mut table = Table::new(&[
            ("TIME (UTC)", Align::Left),
            ("AFTER", Align::Right),
            ("SERVICE", Align::Left),
            ("AT", Align::Left),
            ("WHAT", Align::Left),
        ]);
        for step in &self.steps {
            let bad = step.what.starts_with("ejected") || step.what == "last failure";
            let row = [
                date_time(step.at_ms),
                known(step.after_event_ms, |after| millis(after as f64)),
                step.service.clone(),
                step.at.clone(),
                step.what.clone(),
            ];
            table.row(if bad { Look::Bad } else { Look::Plain }, row);
        }
        lines.extend(table.lines(colours));
        if self.pushes_left_out > 0 {
            lines.push(format!("Updates to {} proxies more are not told.", self.pushes_left_out));
        }
        lines
    }
}

/// A few of them by name, the others by number.
fn some(who: &[&str]) -> String {
    match who {
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second}, {third} and {} more", rest.len())
        }
        few => few.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        mesh::Way,
        testing::{golden, recorded},
    };

    fn member(pod: &str) -> Member {
        let way = Way::Forward { port: 4191 };
        Member { namespace: "shop".to_owned(), pod: pod.to_owned(), way }
    }

    fn of_frontend() -> History {
        let mut endpoints: Endpoints = recorded("endpoints-frontend.json");
        endpoints.services.retain(|service| service.name == "orders");
        endpoints.services[0].endpoints.retain(|endpoint| endpoint.address == "10.0.0.2:8080");
        History { endpoints, events: recorded("events-frontend.json") }
    }

    #[test]
    fn event_push_and_what_came_of_it_are_one_story_by_time() {
        let plane: WhyEndpoint = recorded("why-endpoint.json");
        // Two replicas, as in a cluster.
        let planes = [(member("a"), plane.clone()), (member("b"), plane)];
        let story = Story::of(&planes, &[(member("frontend-0"), of_frontend())]);
        golden("why-endpoint.txt", &story.lines("10.0.0.2:8080", Colours(false)));
        let more = Story { pushes_left_out: 7, ..story };
        let last = more.lines("10.0.0.2:8080", Colours(false)).pop().unwrap();
        assert_eq!(last, "Updates to 7 proxies more are not told.");
        let story = Story { pushes_left_out: 0, ..more };
        let json = serde_json::to_value(&story).unwrap();
        assert_eq!(json["story"][0]["what"], "event: it became ready");
        assert_eq!(json["story"][0]["after_event_ms"], 0);
    }

    #[test]
    fn programs_of_an_older_version_know_no_times() {
        let mut history = of_frontend();
        history.events.events.clear();
        history.endpoints.services[0].endpoints[0].history = Default::default();
        let story = Story::of(&[], &[(member("frontend-0"), history)]);
        let lines = story.lines("10.0.0.2:8080", Colours(false));
        assert_eq!(lines[0], "10.0.0.2:8080 in shop/orders:80: open (shop/frontend-0)");
        assert!(lines[1].starts_with("No times are known"));
    }

    #[test]
    fn many_who_agree_are_counted() {
        assert_eq!(some(&["a", "b", "c"]), "a, b, c");
        assert_eq!(some(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    }
}
