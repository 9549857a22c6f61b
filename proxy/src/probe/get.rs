//! An `httpGet` probe.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header, uri::PathAndQuery};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::tls;

/// Most bytes of a response's head; the body is not read.
const MAX_HEAD: usize = 64 * 1024;

/// A request, ready to be sent to whatever address the pod has.
#[derive(Debug, Clone)]
pub struct Get {
    https: bool,
    port: u16,
    path: PathAndQuery,
    /// What the probe's headers say instead of address and port.
    host: Option<HeaderValue>,
    headers: HeaderMap,
}

/// The handler as Kubernetes writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Written {
    port: u16,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<WrittenHeader>,
}

#[derive(Debug, Deserialize)]
struct WrittenHeader {
    name: String,
    #[serde(default)]
    value: String,
}

impl TryFrom<Written> for Get {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let https = match written.scheme.as_str() {
            "HTTPS" => true,
            "HTTP" | "" => false,
            other => return Err(format!("scheme {other:?} is neither HTTP nor HTTPS")),
        };
        if written.port == 0 {
            return Err("port 0 is no port".to_owned());
        }
        let mut get = Self {
            https,
            port: written.port,
            path: path_of(&written.path)?,
            host: None,
            headers: HeaderMap::new(),
        };
        for WrittenHeader { name, value } in written.http_headers {
            let fail = || format!("header {name:?} cannot be sent with value {value:?}");
            let key: HeaderName = name.parse().map_err(|_| fail())?;
            let value = HeaderValue::from_str(&value).map_err(|_| fail())?;
            if key == header::HOST {
                get.host = Some(value);
            } else {
                get.headers.append(key, value);
            }
        }
        Ok(get)
    }
}

/// The path as it goes over the wire: what may not stand there is written in percent, as the
/// kubelet does.
fn path_of(written: &str) -> Result<PathAndQuery, String> {
    let mut path = String::with_capacity(written.len() + 1);
    if !written.starts_with('/') {
        path.push('/');
    }
    for byte in written.bytes().take_while(|byte| *byte != b'#') {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte) {
            path.push(byte.into());
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path.parse().map_err(|_| format!("path {written:?} cannot be asked for"))
}

impl Get {
    /// For people: what is asked.
    pub(super) fn target(&self, address: IpAddr) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", SocketAddr::new(address, self.port), self.path)
    }

    /// The status of the answer. Redirects are not followed: they pass.
    pub(super) async fn run(&self, address: IpAddr, agent: Option<&str>) -> Result<u16, String> {
        let peer = SocketAddr::new(address, self.port);
        let stream = TcpStream::connect(peer).await.map_err(|error| error.to_string())?;
        if !self.https {
            return http1(stream, self.request(peer, agent, false)?).await;
        }
        let connector = TlsConnector::from(tls::config());
        let name = rustls::pki_types::ServerName::IpAddress(address.into());
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            http2(stream, self.request(peer, agent, true)?).await
        } else {
            http1(stream, self.request(peer, agent, false)?).await
        }
    }

    fn request(
        &self,
        peer: SocketAddr,
        agent: Option<&str>,
        http2: bool,
    ) -> Result<Request<Empty<Bytes>>, String> {
        let mut request = Request::new(Empty::new());
        let host = match &self.host {
            Some(host) => host.clone(),
            None => HeaderValue::try_from(peer.to_string()).map_err(|error| error.to_string())?,
        };
        *request.headers_mut() = self.headers.clone();
        let headers = request.headers_mut();
        if let Some(agent) = agent.and_then(|agent| HeaderValue::from_str(agent).ok()) {
            headers.entry(header::USER_AGENT).or_insert(agent);
        }
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        let uri = if http2 {
            let authority = host.to_str().map_err(|error| error.to_string())?;
            let uri = Uri::builder().scheme("https").authority(authority);
            uri.path_and_query(self.path.clone()).build().map_err(|error| error.to_string())?
        } else {
            headers.insert(header::HOST, host);
            Uri::from(self.path.clone())
        };
        *request.uri_mut() = uri;
        Ok(request)
    }
}

async fn http1<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => return status(answer),
        // The answer may have come with the end of the connection.
        _ = connection => {}
    }
    status(answer.await)
}

async fn http2<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_header_list_size(MAX_HEAD as u32);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => return status(answer),
        _ = connection => {}
    }
    status(answer.await)
}

fn status<B>(answer: hyper::Result<http::Response<B>>) -> Result<u16, String> {
    answer.map(|answer| answer.status().as_u16()).map_err(|error| chain(&error))
}

/// hyper's own words say little; the cause does.
fn chain(error: &hyper::Error) -> String {
    std::error::Error::source(error)
        .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
