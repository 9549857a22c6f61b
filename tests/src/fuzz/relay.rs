//! The proxy's HTTP/1 between a scripted client and scripted upstreams, on paused time, and the
//! story of what it did. The two paths put the same pieces together over real sockets.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use remora_core::{
    drain::{Drain, Watch},
    names::headers::CLIENT_ID,
    settings::HeaderSize,
};
use remora_proxy::{
    error::{Error, Sent},
    http::{
        answer,
        h1::{
            body::Framing,
            exchange::{self, Ending, NoAnswer, Patience},
            pool::Pool,
            request::RequestHead,
            response::ResponseHead,
            server::{self, After, Handler},
            transfer::Transfer,
            wire::Wire,
        },
    },
    net::copy::Carried,
};
use tokio::time::{Instant, sleep, timeout};

use super::script::{Log, Scripted};

/// What every forwarded request carries beside its own.
pub const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// Sends of one request whose pooled connection was closed before a byte was written.
const SENDS: usize = 3;
/// Repetitions where a 503 is answered and that is asked for.
const RETRIES: usize = 2;
/// After this nothing happens any more.
const DAY: Duration = Duration::from_secs(86_400);
/// Where all upstreams are, for the texts of errors.
const UPSTREAM: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// Who talks, and how the proxy is set. The parts of an input, between characters FS: letters
/// that set something (see the fields) and a number, the client's script, and the script of each
/// upstream connection in the order of dialling.
#[derive(Debug, Default)]
pub struct Scene<'a> {
    client: &'a [u8],
    upstreams: Vec<&'a [u8]>,
    /// The number: most bytes in one read.
    grain: usize,
    /// `p`: the first bytes of the client come with the connection, as from detection.
    peeked: bool,
    /// `v`: a 503 is tried again.
    again: bool,
    /// `i`: bodies and tunnels may pause for 5 s.
    idle: bool,
    /// `t`: the response must come within 10 s of the request, and the whole within 90.
    hurried: bool,
    /// `d`: draining begins after 3 s.
    draining: bool,
    /// `h`: heads are at most 4 KiB long.
    short_heads: bool,
}

/// What happened.
#[derive(Debug)]
pub struct Story {
    /// Between client and proxy.
    pub client: Log,
    /// Requests that were understood, in their order.
    pub handled: Vec<Handled>,
    /// Requests that were not; the last thing that happens.
    pub refused: usize,
    /// Connections in the order of dialling.
    pub upstreams: Vec<Upstream>,
    /// The proxy has done with the client, and does not wait for anything more.
    pub over: bool,
}

/// A request that was understood.
#[derive(Debug)]
pub struct Handled {
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// How long its body is.
    pub framing: Framing,
    /// The final response that was given on, if any.
    pub given: Option<Given>,
}

/// A response that was given on.
#[derive(Debug)]
pub struct Given {
    /// The connection that it came from, and which of its requests it answered.
    pub from: (usize, usize),
    /// Both sides left HTTP with it.
    pub tunnel: bool,
    /// All of it was given.
    pub complete: bool,
}

/// A connection to an upstream.
#[derive(Debug)]
pub struct Upstream {
    /// Between proxy and upstream.
    pub log: Log,
    /// The requests sent over it, as indices of [`Story::handled`].
    pub sent: Vec<usize>,
}

struct Relay<'a> {
    scene: &'a Scene<'a>,
    drain: Watch,
    idle: Pool<(), Scripted>,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    handled: Vec<Handled>,
    refused: usize,
    logs: Vec<Arc<Mutex<Log>>>,
    sent: Vec<Vec<usize>>,
    scripts: VecDeque<Vec<u8>>,
}

impl<'a> Scene<'a> {
    /// The scene that an input describes.
    #[must_use]
    pub fn parse(input: &'a [u8]) -> Self {
        let mut parts = input.split(|b| *b == 0x1c);
        let settings = parts.next().unwrap_or_default();
        let is = |letter| settings.contains(&letter);
        let digits = settings.iter().filter(|b| b.is_ascii_digit()).take(5);
        let grain = digits.fold(0, |n, digit| n * 10 + usize::from(digit - b'0'));
        Self {
            grain: if grain == 0 { usize::MAX } else { grain },
            peeked: is(b'p'),
            again: is(b'v'),
            idle: is(b'i'),
            hurried: is(b't'),
            draining: is(b'd'),
            short_heads: is(b'h'),
            client: parts.next().unwrap_or_default(),
            upstreams: parts.take(16).collect(),
        }
    }

    /// Plays it.
    ///
    /// # Panics
    /// Where the proxy does not come to an end.
    #[must_use]
    pub fn play(&self) -> Story {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
        let (drain, watch) = Drain::new();
        let relay = Relay {
            scene: self,
            drain: watch.clone(),
            idle: Pool::new(Duration::from_secs(30)),
            book: Mutex::new(Book {
                scripts: self.upstreams.iter().map(|script| script.to_vec()).collect(),
                ..Book::default()
            }),
        };
        let peeked = if self.peeked { self.client.len().min(5) } else { 0 };
        let (peeked, script) = self.client.split_at(peeked);
        let (client, log) = Scripted::new(script, self.grain);
        log.lock().said.extend_from_slice(peeked);
        let client = Wire::new(client, peeked.to_vec());
        let most =
            if self.short_heads { "4Ki".parse().expect("a size") } else { HeaderSize::default() };
        let over = runtime.block_on(async {
            let draining = async {
                if self.draining {
                    sleep(Duration::from_secs(3)).await;
                    watch.start();
                }
                std::future::pending().await
            };
            let serving = timeout(DAY, server::serve(client, &relay, most, &watch));
            tokio::select! {
                served = serving => served.is_ok(),
                () = draining => false,
            }
        });
        drop(drain);
        let take = |log: &Mutex<Log>| std::mem::take(&mut *log.lock());
        let Book { handled, refused, logs, sent, .. } = relay.book.into_inner();
        let upstreams = logs.iter().zip(sent).map(|(log, sent)| Upstream { log: take(log), sent });
        Story { client: take(&log), handled, refused, upstreams: upstreams.collect(), over }
    }

    fn patience(&self) -> Patience {
        let seconds = Duration::from_secs;
        Patience {
            attempt: self.hurried.then(|| Instant::now() + seconds(30)),
            response: self.hurried.then_some(seconds(10)),
            idle: self.idle.then_some(seconds(5)),
            request: self.hurried.then(|| Instant::now() + seconds(90)),
        }
    }
}

impl Handler<Scripted> for Relay<'_> {
    async fn handle(&self, client: &mut Wire<Scripted>, mut request: RequestHead) -> After {
        request.fields.strip_ours();
        request.fields.add(CLIENT_ID, IDENTITY.as_bytes());
        let nth = self.book.lock().handled.len();
        let mut upload = exchange::upload(&request);
        self.book.lock().handled.push(Handled {
            method: request.method.to_string(),
            path: request.path().to_owned(),
            framing: request.framing,
            given: None,
        });
        let (given, after) = match self.send(client, (&request, nth), &mut upload).await {
            Ok((wire, head)) => self.give(client, wire, (&request, head), &mut upload).await,
            Err(Some(error)) => {
                let response = answer::error(&error, false);
                (None, self.answer(client, &request, &upload, &response).await)
            }
            Err(None) => (None, After::Break),
        };
        self.book.lock().handled[nth].given = given;
        after
    }

    fn refused(&self, _: &Error) {
        self.book.lock().refused += 1;
    }
}

impl Relay<'_> {
    fn connection(&self) -> Option<(Wire<Scripted>, usize)> {
        if let Some((wire, _)) = self.idle.take(&(), Instant::now()) {
            let place = self.place_of(&wire);
            return Some((wire, place));
        }
        let mut book = self.book.lock();
        let script = book.scripts.pop_front()?;
        let (peer, log) = Scripted::new(&script, self.scene.grain);
        book.logs.push(log);
        book.sent.push(Vec::new());
        Some((Wire::new(peer, Vec::new()), book.logs.len() - 1))
    }

    fn place_of(&self, wire: &Wire<Scripted>) -> usize {
        let book = self.book.lock();
        let place = book.logs.iter().position(|log| Arc::ptr_eq(log, wire.io().log()));
        place.expect("a connection that was dialled")
    }

    async fn send(
        &self,
        client: &mut Wire<Scripted>,
        (request, nth): (&RequestHead, usize),
        upload: &mut Transfer,
    ) -> Result<(Wire<Scripted>, ResponseHead), Option<Error>> {
        let (mut sends, mut retries) = (0, 0);
        loop {
            let Some((mut wire, place)) = self.connection() else {
                return Err(Some(Error::NoRoute("the script has no more connections".into())));
            };
            sends += 1;
            let heard = wire.io().log().lock().heard.len();
            self.book.lock().sent[place].push(nth);
            let sides = (&mut *client, &mut wire);
            let asked = exchange::ask(sides, (request, b""), upload, self.scene.patience()).await;
            let detail = match asked {
                Ok(head) => {
                    let again = self.scene.again && head.status == StatusCode::SERVICE_UNAVAILABLE;
                    if again && retries < RETRIES && upload.kept().is_some() {
                        retries += 1;
                        continue;
                    }
                    return Ok((wire, head));
                }
                Err(NoAnswer::Broken { sent: false, error }) => {
                    assert_eq!(wire.io().log().lock().heard.len(), heard, "something was sent");
                    self.book.lock().sent[place].pop();
                    if sends < SENDS && upload.kept().is_some() {
                        continue;
                    }
                    error.to_string()
                }
                Err(NoAnswer::Broken { sent: true, error }) => error.to_string(),
                Err(NoAnswer::Bad(bad)) => bad.to_string(),
                Err(NoAnswer::BadBody(bad)) => return Err(Some(Error::BadRequest(bad.0))),
                Err(NoAnswer::Late(late)) => format!("{late:?}"),
                Err(NoAnswer::ClientGone) => return Err(None),
            };
            return Err(Some(Error::UpstreamReset { addr: UPSTREAM, detail, sent: Sent::Maybe }));
        }
    }

    async fn give(
        &self,
        client: &mut Wire<Scripted>,
        mut wire: Wire<Scripted>,
        (request, mut head): (&RequestHead, ResponseHead),
        upload: &mut Transfer,
    ) -> (Option<Given>, After) {
        let place = self.place_of(&wire);
        let (from, nth) = {
            let sent = &self.book.lock().sent[place];
            ((place, sent.len() - 1), sent[sent.len() - 1])
        };
        head.fields.strip_ours();
        let sides = (&mut *client, &mut wire);
        let given = |tunnel, complete| Some(Given { from, tunnel, complete });
        if head.leaves_http {
            // It may go on to the end of the scene.
            self.book.lock().handled[nth].given = given(true, false);
            let (idle, mut carried) = (self.scene.patience().idle, Carried::default());
            let carrying = exchange::tunnel(sides, (request, head), &mut carried, idle).await;
            return (given(true, carrying.is_ok()), After::Break);
        }
        let (last, kept_for) = (self.drain.is_draining(), head.kept_for);
        let patience = self.scene.patience();
        match exchange::answer(sides, request, head, upload, patience, last).await {
            Ending::Complete { client, upstream } => {
                if upstream {
                    self.idle.give_back(&(), wire, kept_for, Instant::now());
                }
                let after = match client {
                    true => After::Next,
                    false if upload.is_done() => After::Close,
                    false => After::Refuse,
                };
                (given(false, true), after)
            }
            Ending::ClientGone => (given(false, false), After::Break),
            Ending::Broken { begun: false, .. } | Ending::Late { begun: false, .. } => {
                let error = Error::UpstreamReset {
                    addr: UPSTREAM,
                    detail: "nothing came".into(),
                    sent: Sent::Yes,
                };
                let response = answer::error(&error, false);
                (None, self.answer(client, request, upload, &response).await)
            }
            Ending::Broken { .. } | Ending::Late { .. } => (given(false, false), After::Break),
        }
    }

    async fn answer(
        &self,
        client: &mut Wire<Scripted>,
        request: &RequestHead,
        upload: &Transfer,
        response: &Response<Bytes>,
    ) -> After {
        server::answer(client, request, upload, response, self.drain.is_draining()).await
    }
}
