//! Which certificate is served.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::{sync::watch, time::Instant};

use super::{Context, Newest, bundle::Published, material::Material};

/// Turns to each new certificate when API servers trust it, until draining begins.
///
/// Where that cannot be seen, a certificate that has run out is replaced all the same, and the
/// first one is served after a bounded wait: nothing is lost by it.
pub(crate) async fn choose(
    context: Context,
    mut newest: Newest,
    mut published: watch::Receiver<Published>,
    serve: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    let started = Instant::now();
    let mut serving: Option<Arc<Material>> = None;
    // Since when the newest one has been trusted, without a break.
    let mut trusted: Option<(Arc<Material>, Instant)> = None;
    loop {
        let now = Instant::now();
        let candidate = newest
            .borrow_and_update()
            .clone()
            .filter(|candidate| serving.as_ref().is_none_or(|serving| !serving.is_same(candidate)));
        let mut wake = now + context.timing.look;
        if let Some(candidate) = candidate {
            let turn = match trust(&candidate, &published.borrow_and_update(), &context) {
                Trust::Old => Turn::Now,
                Trust::New => {
                    let since = match &trusted {
                        Some((material, since)) if material.is_same(&candidate) => *since,
                        _ => now,
                    };
                    trusted = Some((Arc::clone(&candidate), since));
                    Turn::At(since + context.timing.settle)
                }
                Trust::None => {
                    trusted = None;
                    Turn::Never
                }
            };
            let turn = match (turn, &serving) {
                (Turn::Never, None) => Turn::At(started + context.timing.patience),
                (Turn::At(_) | Turn::Never, Some(old)) if old.expires() <= (context.clock)() => {
                    tracing::error!(
                        "the served certificate has run out before the next is trusted"
                    );
                    Turn::Now
                }
                (turn, _) => turn,
            };
            match turn {
                Turn::Now => turn_to(&candidate, &mut serving, &serve, &context),
                Turn::At(time) if time <= now => {
                    turn_to(&candidate, &mut serving, &serve, &context);
                }
                Turn::At(time) => wake = wake.min(time),
                Turn::Never => {}
            }
        }
        tokio::select! {
            () = context.drain.draining() => return,
            changed = newest.changed() => if changed.is_err() { return },
            changed = published.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}

enum Turn {
    Now,
    At(Instant),
    Never,
}

enum Trust {
    /// For a while, or nobody calls.
    Old,
    /// Perhaps only since a moment ago.
    New,
    None,
}

fn trust(candidate: &Material, published: &Published, context: &Context) -> Trust {
    match published {
        Published::Unknown => Trust::None,
        Published::NoConfiguration => Trust::Old,
        Published::Roots(roots) => {
            if !candidate.root().is_some_and(|root| roots.contains(root)) {
                return Trust::None;
            }
            // A replica that starts long after the certificate was made need not wait.
            let age = (context.clock)().duration_since(candidate.made()).unwrap_or_default();
            if age > context.timing.patience + context.timing.settle * 2 {
                Trust::Old
            } else {
                Trust::New
            }
        }
    }
}

fn turn_to(
    material: &Arc<Material>,
    serving: &mut Option<Arc<Material>>,
    serve: &watch::Sender<Option<Arc<ServerConfig>>>,
    context: &Context,
) {
    match material.server_config() {
        Ok(config) => {
            tracing::info!("serving a new certificate");
            context.metrics.serving_until(material.expires());
            serve.send_replace(Some(Arc::new(config)));
        }
        Err(error) => tracing::error!(%error, "the certificate cannot be served"),
    }
    *serving = Some(Arc::clone(material));
}
