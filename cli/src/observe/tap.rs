//! `remora tap [SVC]`: decisions as they are made.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, mpsc},
};

use super::{
    EXIT_STATUS,
    answers::{Decision, Missed},
    colours, drive,
    error::Error,
    mesh::{AT_A_TIME, Asker, Member, Mesh, Proxies, Silent, Unanswered},
    place::Place,
    query_value,
    table::{Colours, Look, micros, millis, printable, time_of_day},
    wish::Wish,
};

/// Longest record; its path has at most 256 bytes, and attempts are few.
const MAX_LINE: usize = 64 << 10;
/// Records that wait to be printed; a proxy that is faster than the terminal drops its own.
const WAITING: usize = 1024;

/// `remora tap`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// Only requests to this Service: orders, shop/orders, orders.shop:80
    #[arg(value_name = "SVC")]
    service: Option<Wish>,
    /// Only requests that took this route: shop/split, or shop/split/0 for one rule of it
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Only answers of this status: 503, or a class: 5xx
    #[arg(long, value_name = "STATUS", value_parser = status)]
    status: Option<String>,
    /// Only requests whose path begins so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Only requests of this method
    #[arg(long, value_name = "METHOD", value_parser = method)]
    method: Option<String>,
    /// Only answers that the proxy made itself for this reason: no-endpoints
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// End after so many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Print one JSON object a line, as the proxies have it, with the pod's name as `proxy`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Runs it until Ctrl-C, or as many records as were asked for; status 1 where no proxy can be
/// listened to.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    drive(&args.place, async |mesh| {
        let proxies = mesh.proxies(&args.place).await?;
        tokio::select! {
            done = listen(mesh, args, &proxies) => done.map(|()| ExitCode::SUCCESS),
            () = asked_to_end() => Ok(ExitCode::SUCCESS),
        }
    })
}

/// Ctrl-C, or somebody else's wish.
async fn asked_to_end() {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    match signals {
        (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        },
        // Then the signals end it in their own way.
        _ => std::future::pending().await,
    }
}

/// Something a listener has to tell.
enum Told {
    /// It listens.
    Open,
    /// It cannot.
    Refused(Silent),
    /// It has heard something.
    Record(Member, Bytes),
    /// It does not listen any more.
    Ended(Silent),
}

async fn listen(mesh: &Mesh, args: &Args, proxies: &Proxies) -> Result<(), Error> {
    let (tell, mut told) = mpsc::channel(WAITING);
    let path = args.query();
    let askers = mesh.askers(&proxies.members);
    // Connections are made a few at a time; then all are listened to.
    let permits = Semaphore::new(AT_A_TIME);
    let listeners: Vec<_> =
        askers.iter().map(|asker| follow(asker, &path, &permits, tell.clone())).collect();
    drop(tell);
    let printing = async {
        let (mut open, mut silent, mut left) = (0, Vec::new(), args.max);
        let colours = colours();
        while let Some(told) = told.recv().await {
            match told {
                Told::Open => open += 1,
                Told::Refused(one) => {
                    eprintln!("remora: {} is not listened to: {}", one.member, one.why);
                    silent.push(one);
                }
                Told::Ended(one) => {
                    eprintln!("remora: {} is listened to no more: {}", one.member, one.why);
                    continue;
                }
                Told::Record(member, line) => {
                    match args.show(&member, &line, colours)? {
                        Shown::Unwanted => {}
                        Shown::Printed if left.is_none_or(|left| left > 1) => {
                            left = left.map(|left| left - 1);
                        }
                        Shown::Printed | Shown::Unread => return Ok(()),
                    }
                    continue;
                }
            }
            if open + silent.len() == proxies.members.len() && open > 0 {
                eprintln!("remora: listening to {open} proxies of {}", mesh.name());
            }
        }
        // All have ended.
        if open > 0 { Ok(()) } else { Err(Error::Silence { silent }) }
    };
    let listening = async {
        join_all(listeners).await;
        // What they said last is still to be printed, and that ends it.
        std::future::pending().await
    };
    tokio::select! {
        printed = printing => printed,
        () = listening => Ok(()),
    }
}

/// Passes on what one proxy says, and why it says no more.
async fn follow(asker: &Asker<'_>, path: &str, permits: &Semaphore, tell: mpsc::Sender<Told>) {
    let opened = {
        // Never closed.
        let _permit = permits.acquire().await;
        asker.stream(path).await
    };
    let silent = |why| Silent { member: asker.member.clone(), why };
    let last = match opened {
        Err(why) => Told::Refused(silent(why)),
        Ok(streamed) => {
            // Nobody who listens any more is the end.
            let _ = tell.send(Told::Open).await;
            Told::Ended(silent(pass_on(streamed, &asker.member, &tell).await))
        }
    };
    let _ = tell.send(last).await;
}

async fn pass_on(
    mut streamed: super::mesh::Streamed,
    member: &Member,
    tell: &mpsc::Sender<Told>,
) -> Unanswered {
    let mut lines = Lines::default();
    while let Some(frame) = streamed.body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Unanswered::Unreached(error.to_string()),
        };
        for line in lines.feed(&frame.into_data().unwrap_or_default()) {
            if tell.send(Told::Record(member.clone(), line)).await.is_err() {
                break;
            }
        }
    }
    Unanswered::Unreached("it has ended".to_owned())
}

/// Lines out of pieces; what is longer than [`MAX_LINE`] is left out.
#[derive(Debug, Default)]
struct Lines {
    part: BytesMut,
    skipping: bool,
}

impl Lines {
    fn feed(&mut self, piece: &[u8]) -> Vec<Bytes> {
        self.part.extend_from_slice(piece);
        let mut lines = Vec::new();
        while let Some(end) = self.part.iter().position(|byte| *byte == b'\n') {
            let line = self.part.split_to(end).freeze();
            self.part.advance(1);
            if !std::mem::take(&mut self.skipping) && !line.is_empty() {
                lines.push(line);
            }
        }
        if self.part.len() > MAX_LINE {
            self.part.clear();
            self.skipping = true;
        }
        lines
    }
}

impl Args {
    /// What is asked of each proxy, which then sends less. What it cannot compare is compared here.
    fn query(&self) -> String {
        let service = self.service.as_ref().and_then(Wish::filter);
        let filters = [
            ("service", service.as_ref()),
            ("route", self.route.as_ref()),
            ("status", self.status.as_ref()),
            ("path", self.path.as_ref()),
            ("method", self.method.as_ref()),
            ("reason", self.reason.as_ref()),
        ];
        let given: Vec<String> = filters
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", query_value(value?))))
            .collect();
        match given.as_slice() {
            [] => "/tap".to_owned(),
            given => format!("/tap?{}", given.join("&")),
        }
    }

    /// Whether a record passes all filters, whatever its proxy makes of them.
    fn wants(&self, record: &Decision) -> bool {
        let is = |wanted: &Option<String>, given: Option<&String>| {
            wanted.is_none() || wanted.as_ref() == given
        };
        let service = record.service.as_ref().unwrap_or(&record.target);
        let named = |wish: &Wish| wish.means_id(service) || wish.means_id(&record.target);
        self.service.as_ref().is_none_or(named)
            && is(&self.reason, record.reason.as_ref())
            && is(&self.method, Some(&record.method))
            && self.route.as_ref().is_none_or(|wanted| has_route(wanted, record.route.as_ref()))
            && self.status.as_ref().is_none_or(|wanted| has_status(wanted, record.status))
            && self.path.as_ref().is_none_or(|prefix| record.path.starts_with(prefix))
    }

    /// Prints a record that is wanted.
    fn show(&self, member: &Member, line: &[u8], colours: Colours) -> Result<Shown, Error> {
        if let Ok(Missed { missed }) = serde_json::from_slice(line) {
            eprintln!("remora: {missed} records of {member} came too fast and are missing here");
            return Ok(Shown::Unwanted);
        }
        let Ok(record) = serde_json::from_slice::<Decision>(line) else {
            return Ok(Shown::Unwanted);
        };
        if !self.wants(&record) {
            return Ok(Shown::Unwanted);
        }
        let text = match self.json {
            true => with_proxy(member, line),
            false => colours.paint(look(&record), &one_line(member, &record)),
        };
        let mut out = io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => Ok(Shown::Printed),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Shown::Unread),
            Err(error) => Err(Error::Print(error)),
        }
    }
}

/// What became of a record.
enum Shown {
    Printed,
    Unwanted,
    /// Nobody reads any more.
    Unread,
}

/// The record as the proxy wrote it, with whose it is.
fn with_proxy(member: &Member, line: &[u8]) -> String {
    let mut record: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(line).unwrap_or_default();
    record.insert("proxy".to_owned(), member.to_string().into());
    serde_json::Value::Object(record).to_string()
}

fn look(record: &Decision) -> Look {
    let blames = record.reason.is_some() || record.status.is_some_and(|status| status >= 500);
    let failed = record.failed.unwrap_or(blames);
    match (failed, record.attempts.len() > 1 || record.client_left) {
        (true, _) => Look::Bad,
        (false, true) => Look::Doubtful,
        (false, false) => Look::Plain,
    }
}

/// `12:00:01.500 shop/frontend-0 -> shop/orders:80 GET /a 200 3.1 ms …`
fn one_line(member: &Member, record: &Decision) -> String {
    let time = record.at_ms.map_or_else(String::new, |at| format!("{} ", time_of_day(at)));
    let to = record.service.as_ref().unwrap_or(&record.target);
    let way = match record.direction.as_str() {
        "inbound" => {
            let from = record.peer.as_ref().or(record.client.as_ref());
            format!("{member} <- {}", from.map_or("?", String::as_str))
        }
        _ => format!("{member} -> {to}"),
    };
    let status = match (record.grpc_status, record.status) {
        (Some(grpc), _) => format!("grpc {grpc}"),
        (None, Some(status)) => status.to_string(),
        (None, None) => "-".to_owned(),
    };
    let took = record.phases.total_us.map(micros).or(record.elapsed_ms.map(millis));
    let took = took.map_or_else(String::new, |took| format!(" {took}"));
    let what = match (record.sent_bytes, record.received_bytes) {
        (Some(sent), Some(received)) => format!("tcp {sent} B there, {received} B back,"),
        _ if record.protocol == "tcp" => "tcp -".to_owned(),
        _ => format!("{} {} {status}", record.method, record.path),
    };
    let mut line = format!("{time}{way} {what}{took}");
    let last = record.attempts.last().and_then(|attempt| attempt.endpoint.as_ref());
    let notes = [
        ("reason", record.reason.as_ref()),
        ("route", record.route.as_ref()),
        ("endpoint", last),
        ("id", Some(&record.id).filter(|id| !id.is_empty())),
    ];
    for (name, value) in notes {
        line += &value.map_or_else(String::new, |value| format!(" {name}={value}"));
    }
    if record.attempts.len() > 1 {
        line += &format!(" attempts={}", record.attempts.len());
    }
    if record.client_left {
        line += " client-left";
    }
    printable(&line)
}

/// Whether a route is the one wanted, or a rule of it.
fn has_route(wanted: &str, route: Option<&String>) -> bool {
    let rest = route.and_then(|route| route.strip_prefix(wanted));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Methods are told apart by case (RFC 9110 §9.1), and people mean the common ones.
fn method(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-');
    if fits { Ok(text.to_ascii_uppercase()) } else { Err(format!("{text:?} is no method")) }
}

/// Whether a status is the one wanted, or of the class.
fn has_status(wanted: &str, status: Option<u16>) -> bool {
    let Some(status) = status else { return false };
    match wanted.strip_suffix("xx") {
        Some(class) => class.parse() == Ok(status / 100),
        None => wanted.parse() == Ok(status),
    }
}

/// A status, or `1xx` to `5xx`.
fn status(text: &str) -> Result<String, String> {
    let class = |text: &str| matches!(text.as_bytes(), [b'1'..=b'5', b'x', b'x']);
    let number = |text: &str| text.parse().is_ok_and(|status: u16| (100..600).contains(&status));
    let text = text.to_ascii_lowercase();
    if class(&text) || number(&text) {
        Ok(text)
    } else {
        Err(format!("{text:?} is neither a status nor a class of them; use 503 or 5xx"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::observe::{
        answers::Decisions,
        mesh::Way,
        testing::{golden, recorded},
    };

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn args(flags: &[&str]) -> Args {
        Program::parse_from(["tap"].iter().chain(flags)).args
    }

    fn member() -> Member {
        let way = Way::Forward { port: 4191 };
        Member { namespace: "shop".to_owned(), pod: "frontend-0".to_owned(), way }
    }

    #[test]
    fn each_record_is_one_line() {
        let files = [
            "decision-retried.json",
            "decision-no-endpoints.json",
            "decision-inbound.json",
            "decision-left.json",
        ];
        let lines = files.map(|file| {
            let answer: Decisions = recorded(file);
            one_line(&member(), &answer.decisions[0])
        });
        golden("tap.txt", &lines);
    }

    #[test]
    fn a_connection_has_bytes_where_a_request_has_its_status() {
        let mut record = Decision {
            direction: "outbound".to_owned(),
            target: "shop/db:3306".to_owned(),
            protocol: "tcp".to_owned(),
            elapsed_ms: Some(1500.0),
            ..Decision::default()
        };
        let line = |record: &Decision| one_line(&member(), record);
        assert_eq!(line(&record), "shop/frontend-0 -> shop/db:3306 tcp - 1.5 s");
        (record.sent_bytes, record.received_bytes) = (Some(120), Some(4000));
        let carried = "shop/frontend-0 -> shop/db:3306 tcp 120 B there, 4000 B back, 1.5 s";
        assert_eq!(line(&record), carried);
    }

    #[test]
    fn the_proxy_filters_what_it_can_and_the_rest_is_filtered_here() {
        assert_eq!(args(&[]).query(), "/tap");
        let given =
            args(&["shop/orders:80", "--status", "5XX", "--path", "/a b", "--method", "get"]);
        assert_eq!(given.query(), "/tap?service=shop/orders:80&status=5xx&path=/a%20b&method=GET");
        assert_eq!(args(&["orders"]).query(), "/tap");
        let record = Decision {
            target: "shop/orders:80".to_owned(),
            method: "GET".to_owned(),
            path: "/a b/c".to_owned(),
            status: Some(503),
            ..Decision::default()
        };
        assert!(given.wants(&record) && args(&["orders"]).wants(&record));
        let routed = Decision { route: Some("shop/split/0".to_owned()), ..record.clone() };
        assert!(args(&["--route=shop/split"]).wants(&routed));
        assert!(args(&["--route=shop/split/0"]).wants(&routed));
        assert!(!args(&["--route=shop/spl"]).wants(&routed));
        assert!(!args(&["stock"]).wants(&record) && !args(&["--method", "PUT"]).wants(&record));
        let others =
            ["--status=500", "--status=4xx", "--path=/b", "--route=a/b/0", "--reason=denied"];
        assert!(others.iter().all(|flag| !args(&[flag]).wants(&record)));
        assert!(args(&["--status=503"]).wants(&record));
        for wrong in ["--status=6xx", "--status=99", "--status=abc", "--max=0"] {
            assert!(Program::try_parse_from(["tap", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn records_come_in_pieces_and_endless_ones_are_left_out() {
        let mut lines = Lines::default();
        assert!(lines.feed(b"{\"a\":").is_empty());
        assert_eq!(lines.feed(b"1}\n\n{\"b\":2}\n{"), [&b"{\"a\":1}"[..], b"{\"b\":2}"]);
        assert!(lines.feed(&vec![b'x'; MAX_LINE + 1]).is_empty());
        assert_eq!(lines.feed(b"y\n{}\n"), [&b"{}"[..]]);
    }

    #[test]
    fn programs_get_the_record_as_it_is_and_whose_it_is() {
        let text = with_proxy(&member(), br#"{"id":"a","of_a_later_version":[1]}"#);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["proxy"], "shop/frontend-0");
        assert_eq!(value["of_a_later_version"][0], 1);
    }
}
