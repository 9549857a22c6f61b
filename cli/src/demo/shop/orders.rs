//! `orders`: asks `inventory` by gRPC; the one whose replicas the story slows and breaks.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Response, StatusCode};

use super::{
    GrpcClient, POD_HEADER, Server, Serving,
    control::Control,
    serve::{self, Body, Version, text},
};

/// Longest wait for `inventory`.
const LIMIT: Duration = Duration::from_secs(4);

/// `remora shop orders`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) server: Server,
    /// `host:port` of inventory.
    #[arg(long, env = "SHOP_INVENTORY", default_value = "inventory:9090")]
    inventory: String,
}

/// Serves until told to end.
pub(super) async fn run(serving: Serving, args: Args) {
    let inventory = Arc::new(GrpcClient::new(args.inventory, LIMIT));
    let (pod, control, leaving) = (serving.pod, serving.control, serving.leaving);
    serve::run(serving.listener, Version::Http1, serving.drain, move |request| {
        let (inventory, pod) = (inventory.clone(), pod.clone());
        let (control, leaving) = (control.clone(), leaving.clone());
        async move {
            match request.uri().path() {
                "/healthz" if leaving.has_begun() => {
                    text(StatusCode::SERVICE_UNAVAILABLE, "leaving\n")
                }
                "/healthz" => text(StatusCode::OK, "ok\n"),
                _ => answer(&inventory, &pod, &control).await,
            }
        }
    })
    .await;
}

async fn answer(inventory: &GrpcClient, pod: &str, control: &Control) -> Response<Body> {
    let behaviour = control.now();
    if behaviour.delay_ms > 0 {
        tokio::time::sleep(behaviour.delay()).await;
    }
    let mut response = if behaviour.fail {
        text(StatusCode::SERVICE_UNAVAILABLE, format!("{pod}: out of order\n"))
    } else {
        match inventory.stock("tea").await {
            Ok(stock) => {
                let said = format!("{pod} has {} of tea, says {}\n", stock.pieces, stock.pod);
                text(StatusCode::OK, said)
            }
            Err(error) => text(StatusCode::BAD_GATEWAY, format!("{pod}: {error}\n")),
        }
    };
    if let Ok(name) = HeaderValue::from_str(pod) {
        response.headers_mut().insert(POD_HEADER, name);
    }
    response
}
