//! Asking an admin endpoint: one kept connection to one program, answers of a limited size, a time
//! limit for each question.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Member, Mesh, Way,
    forward::{self, Carrier},
    local,
};
use crate::check::api::shortened;

/// Patience with one question, the connection included.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer: 10,000 endpoints with their windows and then some.
const MAX_BODY: usize = 32 << 20;

/// Why there is no answer that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// No connection, or it broke, or it took too long.
    #[error("{0}")]
    Unreached(String),
    /// Not what was hoped for.
    #[error("{path}: HTTP {status} {said}")]
    Status {
        /// What was asked.
        path: String,
        /// The answer.
        status: u16,
        /// Its first line.
        said: String,
    },
    /// The program is of a version that does not have it.
    #[error("it has no {path}; is it of an older version?")]
    Absent {
        /// What was asked, without the query.
        path: String,
    },
    /// Not the JSON that was hoped for.
    #[error("{path}: {problem}")]
    Unreadable {
        /// What was asked.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// A connection to one program, made when it is needed.
#[derive(Debug)]
pub(crate) struct Asker<'a> {
    mesh: &'a Mesh,
    /// Whom it asks.
    pub(crate) member: Member,
    patience: Duration,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    sender: SendRequest<Empty<Bytes>>,
    _connection: AbortOnDropHandle<()>,
    carrier: Option<Carrier>,
}

/// An answer that goes on.
#[derive(Debug)]
pub(crate) struct Streamed {
    /// What comes.
    pub(crate) body: Incoming,
    _open: Open,
}

impl<'a> Asker<'a> {
    /// For one program of the mesh.
    pub(crate) fn new(mesh: &'a Mesh, member: Member) -> Self {
        Self { mesh, member, patience: PATIENCE, open: None }
    }

    /// The same with another patience for each question.
    pub(crate) fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// An answer as JSON.
    ///
    /// # Errors
    /// Says why there is none.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Unanswered> {
        let body = self.body(path).await?;
        serde_json::from_slice(&body).map_err(|error| Unanswered::Unreadable {
            path: path.to_owned(),
            problem: format!("not the JSON expected: {error}"),
        })
    }

    /// An answer's bytes.
    ///
    /// # Errors
    /// Says why there are none.
    pub(crate) async fn body(&mut self, path: &str) -> Result<Bytes, Unanswered> {
        let reused = self.open.is_some();
        match timeout(self.patience, self.once(path)).await {
            // The other side may have closed it meanwhile.
            Ok(Err(Unanswered::Unreached(_))) if reused => {
                self.open = None;
                timeout(self.patience, self.once(path)).await
            }
            first => first,
        }
        .unwrap_or_else(|_| Err(self.late()))
        .inspect_err(|_| self.open = None)
    }

    async fn once(&mut self, path: &str) -> Result<Bytes, Unanswered> {
        let open = match self.open.take() {
            Some(open) => open,
            None => connect(self.mesh, &self.member).await?,
        };
        let (response, open) = ask(open, path).await?;
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| Unanswered::Unreached(format!("{path}: {error}")))?;
        self.open = Some(open);
        Ok(body.to_bytes())
    }

    /// An answer that goes on until it is dropped; only its head has a time limit.
    ///
    /// # Errors
    /// Says why there is none.
    pub(crate) async fn stream(&self, path: &str) -> Result<Streamed, Unanswered> {
        let head = async {
            let open = connect(self.mesh, &self.member).await?;
            let (response, open) = ask(open, path).await?;
            Ok(Streamed { body: response.into_body(), _open: open })
        };
        timeout(self.patience, head).await.unwrap_or_else(|_| Err(self.late()))
    }

    fn late(&self) -> Unanswered {
        Unanswered::Unreached(format!("no answer within {} s", self.patience.as_secs()))
    }
}

async fn connect(mesh: &Mesh, member: &Member) -> Result<Open, Unanswered> {
    let connected = match (&member.way, mesh) {
        (Way::Network { file, address }, _) => {
            let stream = local::connect(file.clone(), *address).await;
            let stream = stream.map_err(Unanswered::Unreached)?;
            shake_hands(stream, None).await
        }
        (Way::Forward { port }, Mesh::Kubernetes(cluster)) => {
            let forward =
                forward::open(&cluster.client, &member.namespace, &member.pod, *port).await;
            let forward = forward.map_err(Unanswered::Unreached)?;
            shake_hands(forward.stream, Some(forward.carrier)).await
        }
        (Way::Forward { .. }, Mesh::Local(_)) => Err("it is not on this machine".to_owned()),
    };
    connected.map_err(Unanswered::Unreached)
}

async fn shake_hands(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    carrier: Option<Carrier>,
) -> Result<Open, String> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driven = tokio::spawn(async move {
        // What breaks it is told to who asks.
        let _ = connection.await;
    });
    Ok(Open { sender, _connection: AbortOnDropHandle::new(driven), carrier })
}

async fn ask(mut open: Open, path: &str) -> Result<(http::Response<Incoming>, Open), Unanswered> {
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::USER_AGENT, concat!("remora/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .map_err(|error| Unanswered::Unreached(format!("{path}: {error}")))?;
    let broken = |error: hyper::Error, open: &Open| {
        let said = open.carrier.as_ref().and_then(Carrier::said);
        Unanswered::Unreached(said.map_or_else(|| error.to_string(), str::to_owned))
    };
    if let Err(error) = open.sender.ready().await {
        return Err(broken(error, &open));
    }
    let response = match open.sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return Err(broken(error, &open)),
    };
    let status = response.status();
    if status.is_success() {
        return Ok((response, open));
    }
    if status == StatusCode::NOT_FOUND {
        let path = path.split('?').next().unwrap_or_default().to_owned();
        return Err(Unanswered::Absent { path });
    }
    let body = Limited::new(response.into_body(), 16 << 10).collect().await;
    let said = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    let said = shortened(&said.unwrap_or_default());
    Err(Unanswered::Status { path: path.to_owned(), status: status.as_u16(), said })
}
