//! What `docs/reasons.md` and the table of `docs/admin.md` say of each reason, against what the code does.

use std::{collections::BTreeSet, io, net::SocketAddr, path::Path, time::Duration};

use super::{Error, Reason, Sent};
use crate::{http::h1::request::Refusal, tls::TlsError};

/// Head of the table that each section has.
const TABLE: &str = "| when | HTTP | gRPC | may have run | safe to retry |";
/// What else it has, in this order.
const PARTS: [&str; 3] = ["**Causes**", "**See it**", "**Mend**"];
/// In the column of statuses, where there is none.
const NO_STATUS: [&str; 3] = ["reset", "closed", "none"];

/// Who hears of an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Callers over HTTP, gRPC's too.
    Everywhere,
    /// Over HTTP/1, which carries no gRPC.
    Http1,
    /// Nobody: the connection or stream ends.
    Nowhere,
}

/// Examples of every kind of error. The patterns are those of a `match` without a rest, so a new kind
/// does not compile before it has an example here.
macro_rules! examples {
    ($($pattern:pat => [$($error:expr, $heard:ident;)+])+) => {
        fn examples() -> Vec<(Error, Heard)> {
            let kind = |error: &Error| match error { $($pattern => stringify!($pattern)),+ };
            let all = vec![$($(($error, Heard::$heard)),+),+];
            let kinds: BTreeSet<_> = all.iter().map(|(error, _)| kind(error)).collect();
            assert_eq!(kinds.len(), [$(stringify!($pattern)),+].len(), "examples are of their kind");
            all
        }
    };
}

examples! {
    Error::Loop(_) => [Error::Loop(addr()), Nowhere;]
    Error::NoEndpoints { .. } => [Error::NoEndpoints { service: service() }, Everywhere;]
    Error::AllEjected { .. } => [
        Error::AllEjected { service: service(), retry_after: SECOND }, Everywhere;
    ]
    Error::Connect { .. } => [
        Error::Connect { addr: addr(), source: io::ErrorKind::ConnectionRefused.into() }, Everywhere;
    ]
    Error::ConnectTimeout { .. } => [
        Error::ConnectTimeout { addr: addr(), after: SECOND }, Everywhere;
    ]
    Error::Tls { .. } => [
        Error::Tls { addr: addr(), source: TlsError::NotTls }, Everywhere;
        Error::Tls { addr: addr(), source: stranger() }, Everywhere;
    ]
    Error::NoCertificate { .. } => [Error::NoCertificate { addr: addr() }, Everywhere;]
    Error::RequestTimeout(_) => [Error::RequestTimeout(SECOND), Everywhere;]
    Error::ResponseTimeout(_) => [Error::ResponseTimeout(SECOND), Everywhere;]
    Error::ClientIdle(_) => [Error::ClientIdle(SECOND), Everywhere;]
    Error::UpstreamIdle(_) => [Error::UpstreamIdle(SECOND), Everywhere;]
    Error::UpstreamReset { .. } => [
        broken(Sent::No), Everywhere;
        broken(Sent::Maybe), Everywhere;
        broken(Sent::Yes), Everywhere;
    ]
    Error::StreamReset { .. } => [
        Error::StreamReset { addr: addr(), code: h2::Reason::CANCEL }, Nowhere;
    ]
    Error::NotDelivered { .. } => [
        Error::NotDelivered { addr: addr(), reason: Reason::ConnectFailed }, Everywhere;
        Error::NotDelivered { addr: addr(), reason: Reason::ConnectTimeout }, Everywhere;
        Error::NotDelivered { addr: addr(), reason: Reason::Overloaded }, Everywhere;
    ]
    Error::DiscoveryTimeout { .. } => [
        Error::DiscoveryTimeout { target: service(), after: SECOND }, Everywhere;
    ]
    Error::Overloaded(_) => [Error::Overloaded("full"), Everywhere;]
    Error::Denied(_) => [Error::Denied("no".into()), Everywhere;]
    Error::BadResponse { .. } => [
        Error::BadResponse { addr: addr(), problem: "is not HTTP/1" }, Everywhere;
    ]
    Error::BadRequest(_) => [Error::BadRequest("its chunk size is no number"), Everywhere;]
    Error::Refused(Refusal::Malformed(_)) => [
        Error::Refused(Refusal::Malformed("it has two Hosts")), Everywhere;
    ]
    Error::Refused(Refusal::Coding) => [Error::Refused(Refusal::Coding), Http1;]
    Error::Refused(Refusal::Version) => [Error::Refused(Refusal::Version), Http1;]
    Error::Refused(Refusal::TargetTooLong(_)) => [
        Error::Refused(Refusal::TargetTooLong(1)), Everywhere;
    ]
    Error::Refused(Refusal::HeadTooLong(_)) => [Error::Refused(Refusal::HeadTooLong(1)), Everywhere;]
    Error::Refused(Refusal::TooManyFields) => [Error::Refused(Refusal::TooManyFields), Everywhere;]
    Error::Refused(Refusal::TooSlow(_)) => [Error::Refused(Refusal::TooSlow(SECOND)), Http1;]
    Error::NoRoute(_) => [Error::NoRoute("none".into()), Everywhere;]
    Error::NoBackend { .. } => [
        Error::NoBackend { route: "a/b/0".into(), why: "none".into() }, Everywhere;
    ]
}

const SECOND: Duration = Duration::from_secs(1);

fn addr() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 80))
}

fn service() -> String {
    "shop/orders:80".to_owned()
}

fn stranger() -> TlsError {
    let expected = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
    TlsError::IdentityMismatch { expected, found: "somebody else".to_owned() }
}

fn broken(sent: Sent) -> Error {
    Error::UpstreamReset { addr: addr(), detail: "eof".to_owned(), sent }
}

fn docs(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Title and text of each `##` section.
fn sections(page: &str) -> Vec<(&str, &str)> {
    let sections = page.split("\n## ").skip(1);
    sections.map(|section| section.split_once('\n').unwrap()).collect()
}

/// The cells of the table behind a head; between `|`, trimmed.
fn rows<'a>(text: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let (_, rest) = text.split_once(head).unwrap_or_else(|| panic!("{head} is not in:\n{text}"));
    let lines = rest.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// `(HTTP, gRPC, may have run)` of what callers hear of a reason.
fn answers(reason: Reason) -> BTreeSet<[String; 3]> {
    let all = examples().into_iter();
    let heard = all.filter(|(e, heard)| e.reason() == reason && *heard != Heard::Nowhere);
    let answer = |(error, heard): (Error, Heard)| {
        let grpc = (heard == Heard::Everywhere).then(|| error.grpc_status().to_string());
        let ran = match error.sent() {
            Sent::No => "no",
            Sent::Maybe => "maybe",
            Sent::Yes => "yes",
        };
        [error.status().as_u16().to_string(), grpc.unwrap_or_default(), ran.to_owned()]
    };
    heard.map(answer).collect()
}

#[test]
fn every_reason_has_a_section_and_none_is_left_over() {
    let page = docs("reasons.md");
    let titles: Vec<&str> = sections(&page).into_iter().map(|(title, _)| title).collect();
    let words: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let unique: BTreeSet<&str> = titles.iter().copied().collect();
    assert_eq!(unique.len(), titles.len(), "a section twice: {titles:?}");
    assert_eq!(unique, words.into_iter().collect::<BTreeSet<_>>());
}

#[test]
fn every_section_has_its_meaning_its_table_and_all_parts_in_order() {
    let page = docs("reasons.md");
    for (reason, text) in sections(&page) {
        let marks: Vec<&str> = [TABLE].into_iter().chain(PARTS).collect();
        let places: Vec<usize> = marks
            .iter()
            .map(|mark| text.find(mark).unwrap_or_else(|| panic!("{reason}: {mark}")))
            .collect();
        assert!(places.is_sorted(), "{reason}: {marks:?} are not in this order");
        let ends = places[1..].iter().copied().chain([text.len()]);
        for ((mark, from), to) in marks.iter().zip(&places).zip(ends) {
            let part = text[from + mark.len()..to].trim_matches([':', ' ', '\n']);
            assert!(part.len() > 20, "{reason}: {mark} says nothing");
        }
        assert!(text[..places[0]].trim().len() > 40, "{reason}: what does it mean?");
        assert!(
            text[places[1]..places[2]].contains("\n1. "),
            "{reason}: causes are a list in order"
        );
        assert!(text[places[2]..places[3]].contains("```\n"), "{reason}: commands show it");
        for row in rows(text, TABLE) {
            assert_eq!(row.len(), 5, "{reason}: {row:?}");
            assert!(["no", "maybe", "yes"].contains(&row[3]), "{reason}: {row:?}");
            assert!(!row[0].is_empty() && !row[4].is_empty(), "{reason}: {row:?}");
        }
    }
}

#[test]
fn statuses_and_whether_it_may_have_run_are_those_of_the_code() {
    let page = docs("reasons.md");
    for (word, text) in sections(&page) {
        let reason = Reason::from_word(word.as_bytes()).unwrap();
        let (told, untold): (Vec<_>, Vec<_>) =
            rows(text, TABLE).into_iter().partition(|row| !NO_STATUS.contains(&row[1]));
        let told: BTreeSet<_> =
            told.iter().map(|row| [row[1], row[2], row[3]].map(str::to_owned)).collect();
        assert_eq!(told, answers(reason), "{word}");
        assert!(untold.iter().all(|row| row[2].is_empty()), "{word}: a status for nobody");
        let unheard =
            examples().into_iter().any(|(e, h)| e.reason() == reason && h == Heard::Nowhere);
        assert!(!unheard || !untold.is_empty(), "{word} ends connections too");
        assert!(!rows(text, TABLE).is_empty());
    }
}

#[test]
fn the_short_table_of_the_admin_page_links_to_every_section_and_has_its_statuses() {
    let page = docs("admin.md");
    let rows = rows(&page, "| reason | status (gRPC) | meaning |");
    assert_eq!(rows.len(), Reason::ALL.len());
    for (row, reason) in rows.iter().zip(Reason::ALL) {
        let word = reason.as_str();
        assert_eq!(row[0], format!("[`{word}`](reasons.md#{word})"), "in the order of the code");
        let statuses: BTreeSet<String> =
            row[1].split(", ").filter(|cell| *cell != "none").map(str::to_owned).collect();
        let told = answers(*reason).into_iter().map(|[http, grpc, _]| match grpc.as_str() {
            "" => http,
            code => format!("{http} ({code})"),
        });
        // A status that is told over HTTP/1 alone is left out where the same is told to all.
        let told: BTreeSet<String> = told.collect();
        let plain =
            |status: &&String| !told.iter().any(|other| other.starts_with(&format!("{status} (")));
        assert_eq!(statuses, told.iter().filter(plain).cloned().collect(), "{word}");
    }
}
