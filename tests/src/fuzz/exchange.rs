//! A whole connection of a client that sends anything in any pieces, with upstreams that answer
//! anything: what each side hears is what the others said, read by [`strict`].

use std::ops::ControlFlow;

use remora_core::names::headers;
use remora_proxy::http::h1::body;

use super::{
    relay::{Given, Handled, IDENTITY, Scene, Story, Upstream},
    script::Log,
    strict::{self, Body, End, Fields, Framing},
};

/// Bytes that the proxy may have read of a client and not written to an upstream: what a connection
/// reads over at its end, and what its buffers hold.
const HELD: usize = (1 << 20) + 5 * (64 << 10);

/// A request as the client meant it.
struct Meant {
    head: strict::Request,
    body: Body,
    /// What follows its head.
    rest: Vec<u8>,
}

/// What a client was given.
type Answer = (strict::Response, Body);

/// Plays the scene that some bytes describe ([`Scene::parse`]).
///
/// # Panics
/// Where one side hears what another did not say.
pub fn exchange(bytes: &[u8]) {
    let story = Scene::parse(bytes).play();
    let meant = meant(&story);
    for upstream in &story.upstreams {
        upstream_heard(upstream, &story.handled, &meant);
    }
    let answers = client_heard(&story, &meant);
    for (handled, answer) in story.handled.iter().zip(answers) {
        if let (Some(given), Some(answer)) = (&handled.given, answer) {
            same_answer(given, &answer, &story);
        }
    }
    let forwarded: usize = story.upstreams.iter().map(|upstream| upstream.log.heard.len()).sum();
    let read = story.client.said.len();
    assert!(read <= forwarded + HELD, "{read} bytes were read of which {forwarded} went on");
    let silent = !story.client.ended;
    assert!(story.over || silent || waits(&story), "the client has ended and nobody noticed");
}

/// Whether somebody may still be waited for: an upstream that says nothing, or a client that takes
/// nothing.
fn waits(story: &Story) -> bool {
    story.upstreams.iter().any(|upstream| !upstream.log.ended) || !story.handled.is_empty()
}

/// Reads again what the client said, and holds it against what the proxy understood.
fn meant(story: &Story) -> Vec<Meant> {
    let said = &story.client.said;
    let mut at = 0;
    let mut all: Vec<Meant> = Vec::new();
    for handled in &story.handled {
        if let Some(Meant { body, .. }) = all.last() {
            assert_eq!(body.end, End::Whole, "a request behind one that has no end");
            at += body.used;
        }
        let (head, used) = match strict::request(&said[at..]) {
            Ok(Some(read)) => read,
            other => panic!("{} {} is no request: {other:?}", handled.method, handled.path),
        };
        at += used;
        assert_eq!((&*head.method, head.path()), (&*handled.method, &*handled.path));
        assert_eq!(framing(head.framing), framing_of(handled));
        let rest = said[at..].to_vec();
        let body = strict::body(head.framing, &rest, false);
        all.push(Meant { head, body, rest });
    }
    all
}

/// One form of "none".
fn framing(framing: Framing) -> Framing {
    if framing == Framing::Length(0) { Framing::None } else { framing }
}

fn framing_of(handled: &Handled) -> Framing {
    framing(match handled.framing {
        body::Framing::None => Framing::None,
        body::Framing::Length(length) => Framing::Length(length),
        body::Framing::Chunked => Framing::Chunked,
        body::Framing::UntilClose => panic!("a request up to the end of the connection"),
    })
}

/// What an upstream heard are the requests that were sent to it, and nothing beside them.
fn upstream_heard(upstream: &Upstream, handled: &[Handled], meant: &[Meant]) {
    let heard = &upstream.log.heard;
    let mut at = 0;
    let mut over = false;
    for nth in &upstream.sent {
        assert!(!over, "a request behind one that was not sent to its end");
        let Meant { head, body, rest } = &meant[*nth];
        let (got, used) = match strict::request(&heard[at..]) {
            Ok(Some(read)) => read,
            Ok(None) => {
                over = true;
                at = heard.len();
                continue;
            }
            Err(bad) => panic!("an upstream heard no request ({bad}): {:?}", text(&heard[at..])),
        };
        at += used;
        assert_eq!(got, forwarded(head), "not the request that was meant");
        if handled[*nth].given.as_ref().is_some_and(|given| given.tunnel) {
            assert_eq!(body.end, End::Whole, "HTTP was left in the middle of a request");
            let through = &rest[body.used..];
            let got = &heard[at + strict::body(got.framing, &heard[at..], false).used..];
            assert!(through.starts_with(got), "something else came through a tunnel");
            at = heard.len();
            over = true;
            continue;
        }
        let sent = strict::body(got.framing, &heard[at..], false);
        assert!(body.content.starts_with(&sent.content), "another body");
        match sent.end {
            End::Bad(bad) => panic!("an upstream heard no body: {bad}"),
            End::Whole => {
                assert_eq!(body.end, End::Whole, "a body was ended that has no end");
                assert_eq!(sent.content, body.content);
                assert_eq!(sent.trailers, permitted(&body.trailers));
                at += sent.used;
            }
            End::Missing => {
                at = heard.len();
                over = true;
            }
        }
    }
    assert_eq!(at, heard.len(), "more than what was sent: {:?}", text(&heard[at..]));
}

/// The request as the next hop is to get it (RFC 9110 §7.6).
#[must_use]
pub fn forwarded(head: &strict::Request) -> strict::Request {
    let mut fields = stripped(&head.fields);
    let upgrade = upgrade(head);
    if !upgrade {
        fields.retain(|(name, _)| name != "upgrade");
    }
    let te: Vec<_> = strict::values(&head.fields, "te").filter(|te| *te != b"trailers").collect();
    fields.retain(|(name, value)| name != "te" || value == b"trailers");
    let wants_trailers =
        |te: &&[u8]| te.split(|b| *b == b',').any(|te| te.trim_ascii() == b"trailers");
    if te.iter().any(wants_trailers) {
        fields.push(("te".to_owned(), b"trailers".to_vec()));
    }
    if let Some(authority) = &head.authority {
        let same = |host: &[u8]| host.eq_ignore_ascii_case(authority.as_bytes());
        if !strict::values(&fields, "host").any(same) {
            fields.retain(|(name, _)| name != "host");
            fields.push(("host".to_owned(), authority.clone().into_bytes()));
        }
    }
    fields.retain(|(name, _)| !name.starts_with(headers::PREFIX));
    let named = fields.iter().any(|(name, _)| name == "host");
    let minor = u8::from(head.minor > 0 || named);
    fields.push((headers::CLIENT_ID.to_owned(), IDENTITY.as_bytes().to_vec()));
    if upgrade {
        fields.push(("connection".to_owned(), b"upgrade".to_vec()));
    }
    strict::Request { fields, minor, ..head.clone() }
}

/// Whether a request asks for another protocol, and not for HTTP/2.
fn upgrade(head: &strict::Request) -> bool {
    let to = strict::values(&head.fields, "upgrade").last();
    let h2c = |to: &[u8]| to.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"h2c"));
    head.minor > 0
        && head.method != "CONNECT"
        && strict::has(&head.fields, "connection", "upgrade")
        && to.is_some_and(|to| !h2c(to))
}

/// Fields without those of the connection, but for `upgrade`.
fn stripped(fields: &Fields) -> Fields {
    /// Cannot be made the connection's own by naming them so.
    const KEPT: [&str; 8] = [
        "authorization",
        "content-length",
        "content-type",
        "cookie",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    const OWN: [&str; 4] = ["connection", "http2-settings", "keep-alive", "proxy-connection"];
    let stays = |(name, _): &&(String, Vec<u8>)| {
        !OWN.contains(&&**name)
            && (KEPT.contains(&&**name) || !strict::has(fields, "connection", name))
    };
    fields.iter().filter(stays).cloned().collect()
}

/// Trailer fields that may travel on.
#[must_use]
pub fn permitted(trailers: &Fields) -> Fields {
    const FORBIDDEN: [&str; 14] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "host",
        "keep-alive",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let ours = |name: &str| name.starts_with(headers::PREFIX);
    let allowed = |(name, _): &&(String, Vec<u8>)| !FORBIDDEN.contains(&&**name) && !ours(name);
    trailers.iter().filter(allowed).cloned().collect()
}

/// What the client heard are answers to its requests in their order, each whole but perhaps the
/// last, and a refusal is the last.
fn client_heard(story: &Story, meant: &[Meant]) -> Vec<Option<Answer>> {
    let mut ear = Ear { heard: &story.client.heard, at: 0, last: None };
    let mut answers = Vec::new();
    for (handled, meant) in story.handled.iter().zip(meant) {
        answers.push(ear.answer(handled, &meant.head));
    }
    if story.refused > 0 {
        assert_eq!(story.refused, 1, "something came behind a refusal");
        if let ControlFlow::Continue((head, _)) = ear.one("GET", 1) {
            assert!((400..600).contains(&head.status) && ear.last == Some("close"), "{head:?}");
        }
    }
    assert_eq!(ear.at, ear.heard.len(), "more than answers: {:?}", text(&ear.heard[ear.at..]));
    answers
}

struct Ear<'a> {
    heard: &'a [u8],
    at: usize,
    /// Why nothing may follow.
    last: Option<&'static str>,
}

impl Ear<'_> {
    /// The final answer to a request; `None` where there is none, or not all of its head.
    fn answer(&mut self, handled: &Handled, request: &strict::Request) -> Option<Answer> {
        loop {
            let ControlFlow::Continue((head, body)) = self.one(&handled.method, request.minor)
            else {
                return None;
            };
            let switched = head.status == 101;
            if head.status >= 200 || switched {
                let tunnel = handled.given.as_ref().is_some_and(|given| given.tunnel);
                assert!(!switched || tunnel, "a switch that nobody made");
                return Some((head, body));
            }
            assert_eq!(request.minor, 1, "an interim response to a client that knows none");
        }
    }

    /// One response, final or not.
    fn one(&mut self, method: &str, minor: u8) -> ControlFlow<(), Answer> {
        let rest = &self.heard[self.at..];
        if rest.is_empty() {
            return ControlFlow::Break(());
        }
        assert_eq!(self.last, None, "something follows: {:?}", text(rest));
        let (head, used) = match strict::response(rest) {
            Ok(Some(read)) => read,
            Ok(None) => {
                self.at = self.heard.len();
                self.last = Some("half a head");
                return ControlFlow::Break(());
            }
            Err(bad) => panic!("the client heard no response ({bad}): {:?}", text(rest)),
        };
        assert!(head.minor <= minor, "an answer in a version that the client does not know");
        self.at += used;
        let tunnel = method == "CONNECT" && (200..300).contains(&head.status) || head.status == 101;
        let framing = if method == "HEAD" { Framing::None } else { head.framing };
        let framing = if tunnel { Framing::UntilClose } else { framing };
        let body = strict::body(framing, &self.heard[self.at..], true);
        self.at += body.used;
        match body.end {
            End::Bad(bad) => panic!("the client heard no body: {bad}"),
            End::Missing => {
                self.at = self.heard.len();
                self.last = Some("half a body");
            }
            End::Whole if framing == Framing::UntilClose => self.last = Some("no end"),
            End::Whole if strict::has(&head.fields, "connection", "close") => {
                self.last = Some("close");
            }
            End::Whole => {
                let stays = strict::has(&head.fields, "connection", "keep-alive");
                if head.status >= 200 && head.minor == 0 && !stays {
                    self.last = Some("HTTP/1.0");
                }
            }
        }
        ControlFlow::Continue((head, body))
    }
}

/// Where an upstream's answer can be read in one way only, it is what the client was given.
fn same_answer(given: &Given, (head, body): &Answer, story: &Story) {
    let (connection, nth) = given.from;
    let upstream = &story.upstreams[connection];
    let Some((said, said_body)) = said(upstream, nth, &story.handled) else { return };
    assert_eq!(head.status, said.status);
    let through = |fields: &Fields| -> Fields {
        let mut fields = stripped(fields);
        fields.retain(|(name, _)| {
            !name.starts_with(headers::PREFIX)
                && !["content-length", "te", "transfer-encoding", "upgrade"].contains(&&**name)
        });
        fields
    };
    assert_eq!(through(&head.fields), through(&said.fields), "other fields");
    if given.tunnel {
        let rest = said_body.content;
        assert!(rest.starts_with(&body.content), "something else came back through a tunnel");
        return;
    }
    assert!(said_body.content.starts_with(&body.content), "another body");
    if given.complete {
        assert_eq!(said_body.content, body.content);
        assert_eq!(said_body.end, End::Whole, "a response was ended that has no end");
        let framed = head.framing == Framing::Chunked && said.framing == Framing::Chunked;
        assert!(!framed || body.trailers == permitted(&said_body.trailers), "other trailers");
    }
}

/// The answer to the request of this number on a connection; `None` where the strict reading does
/// not come so far.
fn said(upstream: &Upstream, nth: usize, handled: &[Handled]) -> Option<Answer> {
    let Log { said, ended, .. } = &upstream.log;
    let mut at = 0;
    for (here, request) in upstream.sent.iter().enumerate() {
        let method = &*handled[*request].method;
        let (head, used) = loop {
            let (head, used) = strict::response(&said[at..]).ok()??;
            if head.status >= 200 || head.status == 101 {
                break (head, used);
            }
            at += used;
        };
        at += used;
        let tunnel = method == "CONNECT" && (200..300).contains(&head.status) || head.status == 101;
        let framing = match (method, tunnel) {
            (_, true) => Framing::UntilClose,
            ("HEAD", _) => Framing::None,
            _ => head.framing,
        };
        let body = strict::body(framing, &said[at..], *ended);
        at += body.used;
        match (here == nth, body.end) {
            (_, End::Bad(_)) => return None,
            (true, _) => return Some((head, body)),
            (false, _) => {}
        }
    }
    None
}

/// For people.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned()
}
