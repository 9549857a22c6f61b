//! HTTP/1 requests for the application. The whole exchange runs on the task of its connection.

use http::header::HeaderName;
use remora_core::names::headers::CLIENT_ID;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};

use super::{
    CONNECT,
    http::{Requests, Told, promised},
};
use crate::{
    error::{Error, Sent},
    fields::FieldsMut,
    http::{
        answer::is_grpc,
        h1::{
            exchange::{self, Ending, NoAnswer, Patience},
            request::RequestHead,
            response::ResponseHead,
            server::{self, After, Handler},
            transfer::Transfer,
            wire::Wire,
        },
    },
    metrics::{
        Direction, Tls,
        flow::{End, Rpc},
    },
    net::{connect::Reset, copy::Carried},
};

/// Sends of one request whose pooled connection turned out to be closed before a byte was written.
const MAX_SENDS: usize = 3;

static CLIENT_ID_NAME: HeaderName = HeaderName::from_static(CLIENT_ID);

impl<IO> Handler<IO> for Requests
where
    IO: AsyncRead + AsyncWrite + Reset + Unpin + Send,
{
    async fn handle(&self, client: &mut Wire<IO>, mut request: RequestHead) -> After {
        let story = self.begin(&request.fields, Instant::now());
        let grpc = is_grpc(&request.fields);
        let admitted = self.admit(request.path());
        if self.arrival.tls == Tls::Mutual {
            // What a proxy of ours set stays, but for what only we can know.
            request.fields.remove(&CLIENT_ID_NAME);
        } else {
            request.fields.strip_ours();
        }
        if let Some(id) = &self.client_id {
            request.fields.add(CLIENT_ID, id.as_bytes());
        }
        let told = Told { head: &request, grpc, story: &story };
        let mut upload = exchange::upload(&request);
        upload.counted_in(self.bodies());
        let sent = match admitted {
            Ok(()) => self.send(client, &request, &mut upload).await,
            Err(denied) => Err(Some(denied)),
        };
        match sent {
            Ok((app, head)) => self.finish(client, app, (&request, head), &mut upload, told).await,
            Err(Some(error)) => self.answer(client, &request, &upload, &error, told).await,
            Err(None) => {
                self.left(told);
                After::Break
            }
        }
    }

    fn refused(&self, error: &Error) {
        self.inbound.metrics.error(Direction::Inbound, error.reason());
        tracing::debug!(%error, "request refused");
    }
}

impl Requests {
    async fn answer<IO>(
        &self,
        client: &mut Wire<IO>,
        request: &RequestHead,
        upload: &Transfer,
        error: &Error,
        told: Told<'_>,
    ) -> After
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let response = self.failed(told, error);
        let draining = self.inbound.drain.is_draining();
        server::answer(client, request, upload, &response, draining).await
    }

    /// Sends to the application, over another connection where a pooled one was closed before one
    /// byte was written. `Err(None)`: the client is gone.
    async fn send<IO>(
        &self,
        client: &mut Wire<IO>,
        request: &RequestHead,
        upload: &mut Transfer,
    ) -> Result<(Wire<TcpStream>, ResponseHead), Option<Error>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (inbound, addr) = (&self.inbound, self.arrival.app);
        let mut sends = 0;
        loop {
            let (mut app, idle) = match inbound.idle.take(&addr, Instant::now()) {
                Some((app, idle)) => (app, Some(idle)),
                None => {
                    let stream = inbound.connector.connect(addr, CONNECT).await?;
                    (Wire::new(stream, Vec::new()), None)
                }
            };
            sends += 1;
            let sides = (&mut *client, &mut app);
            let asked = exchange::ask(sides, (request, b""), upload, Patience::default()).await;
            let failed = match asked {
                Ok(head) => return Ok((app, head)),
                Err(failed) => failed,
            };
            // The application sees that nobody waits any more.
            app.reset();
            if let (NoAnswer::Broken { .. }, Some(idle)) = (&failed, idle) {
                inbound.idle.broke(&addr, idle, Instant::now());
            }
            let error = match failed {
                NoAnswer::Broken { sent: false, .. }
                    if sends < MAX_SENDS && upload.kept().is_some() =>
                {
                    continue;
                }
                NoAnswer::Broken { error, sent } => {
                    let sent = if sent { Sent::Maybe } else { Sent::No };
                    Error::UpstreamReset { addr, detail: error.to_string(), sent }
                }
                NoAnswer::Bad(bad) => Error::BadResponse { addr, problem: bad.0 },
                NoAnswer::BadBody(bad) => Error::BadRequest(bad.0),
                NoAnswer::ClientGone | NoAnswer::Late(_) => return Err(None),
            };
            return Err(Some(error));
        }
    }

    /// Gives the response to the caller.
    async fn finish<IO>(
        &self,
        client: &mut Wire<IO>,
        mut app: Wire<TcpStream>,
        (request, mut head): (&RequestHead, ResponseHead),
        upload: &mut Transfer,
        told: Told<'_>,
    ) -> After
    where
        IO: AsyncRead + AsyncWrite + Reset + Unpin,
    {
        let inbound = &self.inbound;
        // Callers believe what our headers say, so only this proxy may set them.
        head.fields.strip_ours();
        // Codes of calls come in trailers, and over HTTP/1 those are carried on unread.
        let given = promised(head.status, Rpc::No, told.story);
        let sides = (&mut *client, &mut app);
        if head.leaves_http {
            self.over(told, &given);
            let mut carried = Carried::default();
            let tunnel = exchange::tunnel(sides, (request, head), &mut carried, None);
            if let Err(error) = tunnel.await {
                tracing::debug!(%error, "upgraded connection broke");
            }
            inbound.metrics.carried(Direction::Inbound, carried.a_to_b, carried.b_to_a);
            return After::Break;
        }
        let (last, kept_for) = (inbound.drain.is_draining(), head.kept_for);
        let patience = Patience::default();
        match exchange::answer(sides, request, head, upload, patience, last).await {
            Ending::Complete { client, upstream } => {
                let now = self.over(told, &given);
                if upstream {
                    inbound.idle.give_back(&self.arrival.app, app, kept_for, now);
                }
                match client {
                    true => After::Next,
                    false if upload.is_done() => After::Close,
                    false => After::Refuse,
                }
            }
            Ending::ClientGone | Ending::Late { .. } => {
                self.over(told, &given.ended(End::Cancelled));
                app.reset();
                After::Break
            }
            Ending::Broken { error, begun } => {
                let (addr, detail) = (self.arrival.app, error.to_string());
                let error = Error::UpstreamReset { addr, detail, sent: Sent::Yes };
                if begun {
                    self.failed_late(told, &given, &error);
                    return After::Break;
                }
                self.answer(client, request, upload, &error, told).await
            }
        }
    }
}
