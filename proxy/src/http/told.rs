//! Callers whose connection cannot be served, and who can be told so.

use remora_core::{drain, settings::HeaderSize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{
    answer,
    h1::{
        exchange,
        request::RequestHead,
        server::{self, After, Handler},
        wire::Wire,
    },
};
use crate::{
    error::Error,
    net::{
        connect::Reset,
        detect::{self, Detected},
    },
};

/// Answers with an error whoever speaks HTTP/1; for others a reset has to do.
pub async fn tell(mut client: TcpStream, error: Error, drain: &drain::Watch) {
    let mut seen = bytes::BytesMut::new();
    let found = detect::detect(&mut client, &mut seen, detect::FIRST_BYTE).await;
    if !matches!(found, Ok(Detected::Http1)) {
        return client.reset();
    }
    let client = Wire::new(client, seen.into());
    server::serve(client, &Told(error), HeaderSize::default(), drain).await;
}

/// Each request hears why, and the connection ends, since the next one may fare better.
struct Told(Error);

impl<IO> Handler<IO> for Told
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    async fn handle(&self, client: &mut Wire<IO>, request: RequestHead) -> After {
        let response = answer::error(&self.0, answer::is_grpc(&request.fields));
        server::answer(client, &request, &exchange::upload(&request), &response, true).await
    }

    fn refused(&self, _: &Error) {}
}
