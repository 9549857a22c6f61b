//! `inventory`: a gRPC server (h2c).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;

use super::{
    Serving,
    grpc::{self, Code, StockReply, StockRequest},
    serve::{self, Body, Version, text},
};

/// Serves until told to end.
pub(super) async fn run(serving: Serving) {
    let (pod, control) = (serving.pod, serving.control);
    serve::run(serving.listener, Version::Http2, serving.drain, move |request| {
        let (pod, control) = (pod.clone(), control.clone());
        async move {
            let behaviour = control.now();
            if behaviour.delay_ms > 0 {
                tokio::time::sleep(behaviour.delay()).await;
            }
            if behaviour.fail {
                return status_only(Code::Unavailable);
            }
            answer(&pod, request).await
        }
    })
    .await;
}

async fn answer(pod: &str, request: Request<Incoming>) -> Response<Body> {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(grpc::CONTENT_TYPE.as_bytes()));
    if !is_grpc || request.method() != Method::POST {
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "this is a gRPC service\n");
    }
    if request.uri().path() != grpc::STOCK {
        return status_only(Code::Unimplemented);
    }
    let Ok(body) = Limited::new(request.into_body(), grpc::MAX_MESSAGE).collect().await else {
        return status_only(Code::InvalidArgument);
    };
    let Ok(asked) = grpc::unframe::<StockRequest>(body.to_bytes()) else {
        return status_only(Code::InvalidArgument);
    };
    let pieces = u32::try_from(asked.article.len()).unwrap_or(u32::MAX);
    let reply = grpc::frame(&StockReply { pieces, pod: pod.to_owned() });
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(Code::Ok as u16));
    grpc_response(Full::new(reply).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed())
}

/// A trailers-only answer: the status in the head, no message.
fn status_only(code: Code) -> Response<Body> {
    let mut response = grpc_response(Empty::<Bytes>::new().boxed());
    response.headers_mut().insert("grpc-status", HeaderValue::from(code as u16));
    response
}

fn grpc_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static(grpc::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
