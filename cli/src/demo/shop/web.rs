//! `web`: what customers see; asks `orders` for every request.

use std::{sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{
    HttpClient, POD_HEADER, Server, Serving,
    serve::{self, Body, Version, text},
};

/// Longest wait for `orders`.
const LIMIT: Duration = Duration::from_secs(5);

/// `remora shop web`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) server: Server,
    /// `host:port` of orders.
    #[arg(long, env = "SHOP_ORDERS", default_value = "orders:80")]
    orders: String,
}

/// Serves until told to end.
pub(super) async fn run(serving: Serving, args: Args) {
    let orders = Arc::new(HttpClient::new(args.orders, LIMIT));
    let (pod, leaving) = (serving.pod, serving.leaving);
    serve::run(serving.listener, Version::Http1, serving.drain, move |request| {
        let (orders, pod, leaving) = (orders.clone(), pod.clone(), leaving.clone());
        async move {
            match request.uri().path() {
                "/healthz" if leaving.has_begun() => {
                    text(StatusCode::SERVICE_UNAVAILABLE, "leaving\n")
                }
                "/healthz" => text(StatusCode::OK, "ok\n"),
                _ => answer(&orders, &pod, &request).await,
            }
        }
    })
    .await;
}

async fn answer(orders: &HttpClient, pod: &str, request: &Request<Incoming>) -> Response<Body> {
    let order = match orders.get("/").await {
        Ok(order) => order,
        Err(error) => return text(StatusCode::BAD_GATEWAY, format!("{pod}: {error}\n")),
    };
    if !order.status().is_success() {
        return text(StatusCode::BAD_GATEWAY, format!("{pod}: orders said {}\n", order.status()));
    }
    let said = String::from_utf8_lossy(order.body());
    let page = format!("{pod} {} {}: {said}", request.method(), request.uri().path());
    let mut response = text(StatusCode::OK, page);
    if let Some(answered_by) = order.headers().get(POD_HEADER) {
        response.headers_mut().insert(POD_HEADER, answered_by.clone());
    }
    response
}
