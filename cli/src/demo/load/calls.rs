//! The calls a customer makes.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::super::shop::{CallError, GrpcClient, HttpClient, POD_HEADER};
use super::{Class, Outcome};

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(6);
/// Longest line read from the ticker.
const MAX_LINE: u64 = 1024;

/// One client per service.
#[derive(Debug)]
pub(crate) struct Callers {
    web: HttpClient,
    inventory: GrpcClient,
    ticker: String,
}

impl Callers {
    pub(crate) fn new(web: String, inventory: String, ticker: String) -> Self {
        Self {
            web: HttpClient::new(web, LIMIT),
            inventory: GrpcClient::new(inventory, LIMIT),
            ticker,
        }
    }

    /// One call of a class.
    pub(crate) async fn call(&self, class: Class) -> Outcome {
        match class {
            Class::Http => page(self.web.get("/").await),
            Class::Fresh => page(self.web.get_fresh("/").await),
            Class::Grpc => match self.inventory.stock("tea").await {
                Ok(_) => Outcome::Answered(None),
                Err(error) => Outcome::Failed(error.to_string()),
            },
            Class::Tcp => match tokio::time::timeout(LIMIT, tick(&self.ticker)).await {
                Ok(Ok(())) => Outcome::Answered(None),
                Ok(Err(error)) => Outcome::Failed(format!("ticker: {error}")),
                Err(_) => Outcome::Failed(format!("ticker: no end of session within {LIMIT:?}")),
            },
        }
    }
}

fn page(answer: Result<Response<Bytes>, CallError>) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    if !answer.status().is_success() {
        let said = String::from_utf8_lossy(answer.body());
        return Outcome::Failed(format!("web: status {}: {}", answer.status(), said.trim()));
    }
    match answer.headers().get(POD_HEADER).map(|pod| pod.to_str()) {
        Some(Ok(pod)) => Outcome::Answered(Some(pod.to_owned())),
        _ => Outcome::Failed("web: the answer does not say which replica of orders it is".into()),
    }
}

/// One session: the banner comes unasked, a line comes back, both sides close.
async fn tick(authority: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read.take(2 * MAX_LINE));
    let mut line = String::new();
    lines.read_line(&mut line).await?;
    if !line.ends_with('\n') {
        return Err(std::io::Error::other(format!("no banner but {line:?}")));
    }
    write.write_all(b"what is the time\n").await?;
    line.clear();
    lines.read_line(&mut line).await?;
    if line != "what is the time\n" {
        return Err(std::io::Error::other(format!("no echo but {line:?}")));
    }
    write.shutdown().await?;
    line.clear();
    lines.read_line(&mut line).await?;
    if line.is_empty() { Ok(()) } else { Err(std::io::Error::other("bytes after the end")) }
}
