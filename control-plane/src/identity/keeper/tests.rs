use std::time::UNIX_EPOCH;

use remora_core::drain::{Drain, Drained};
use tokio::time::{Instant, timeout};

use super::*;
use crate::identity::ca::NewRoot;

const OVERLAP: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(600);

thread_local! {
    static START: Instant = Instant::now();
}

/// Wall time that follows tokio's.
fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000) + START.with(Instant::elapsed)
}

fn authority(name: &str) -> Arc<Authority> {
    let root = NewRoot::generate(name, clock()).unwrap();
    let roots = vec![root.certificate];
    Arc::new(Authority::new(&roots.clone(), root.key, roots, LIFE).unwrap())
}

struct Running {
    says: mpsc::Sender<Seen>,
    signer: watch::Receiver<Arc<Signer>>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    notices: watch::Receiver<Arc<Vec<Notice>>>,
    metrics: Arc<Metrics>,
    drain: Drain,
}

async fn run(first: &Arc<Authority>) -> Running {
    let (drain, watch) = Drain::new();
    let (says, mut seen) = mpsc::channel(4);
    let metrics = Arc::new(Metrics::default());
    let setup = Setup {
        rules: Rules { overlap: OVERLAP, leaf_lifetime: LIFE },
        trust_domain: "cluster.local".to_owned(),
        published: Roots::default(),
        clock,
        metrics: Arc::clone(&metrics),
    };
    says.send(Seen::Refused { version: "1".to_owned(), problem: "bad".to_owned() }).await.unwrap();
    says.send(Seen::Issuer(Arc::clone(first))).await.unwrap();
    let keeper = Keeper::first(setup, &mut seen, &watch).await.unwrap();
    let (signer, bundle) = (keeper.signer(), keeper.bundle());
    let notices = keeper.notices();
    tokio::spawn(watch.clone().track(keeper.run(seen, watch)));
    Running { says, signer, bundle, notices, metrics, drain }
}

#[tokio::test(start_paused = true)]
async fn a_new_issuer_is_streamed_at_once_signs_after_the_overlap_and_the_old_root_goes() {
    let (one, two) = (authority("one"), authority("two"));
    let mut running = run(&one).await;
    assert_eq!(running.bundle.borrow().roots.len(), 1);
    running.says.send(Seen::Issuer(Arc::clone(&two))).await.unwrap();
    let changed = Instant::now();

    running.bundle.changed().await.unwrap();
    assert_eq!(running.bundle.borrow_and_update().roots.len(), 2);
    assert!(changed.elapsed() < Duration::from_secs(1));
    assert!(running.signer.borrow().authority.is_same(&one));

    running.signer.changed().await.unwrap();
    assert!(running.signer.borrow().authority.is_same(&two));
    let second = Duration::from_secs(1);
    assert!((OVERLAP..OVERLAP + second).contains(&changed.elapsed()), "{:?}", changed.elapsed());

    running.bundle.changed().await.unwrap();
    assert_eq!(running.bundle.borrow().roots, [two.roots()[0].to_vec()]);
    assert!(changed.elapsed() > OVERLAP + LIFE);
    assert_eq!(running.drain.drain(OVERLAP).await, Drained::Clean);
}

#[tokio::test(start_paused = true)]
async fn a_refused_issuer_is_told_and_changes_nothing_else() {
    let one = authority("one");
    let mut running = run(&one).await;
    assert_eq!(running.metrics.issuer_refused.get(), 0);
    let refused = |version: &str| Seen::Refused {
        version: version.to_owned(),
        problem: "Secret a/b, key tls.key: no private key in PEM; mend".to_owned(),
    };
    running.says.send(refused("7")).await.unwrap();
    running.notices.changed().await.unwrap();
    let notices = Arc::clone(&running.notices.borrow_and_update());
    assert!(notices[0].note.contains("key tls.key"), "{notices:?}");
    assert_eq!(running.metrics.issuer_refused.get(), 1);
    assert!(!running.signer.has_changed().unwrap() && !running.bundle.has_changed().unwrap());
    // It comes back to what it was.
    running.says.send(Seen::Issuer(one)).await.unwrap();
    running.notices.changed().await.unwrap();
    assert!(running.notices.borrow().is_empty());
    assert!(!running.signer.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn each_level_of_expiry_is_a_notice_of_its_own() {
    let one = authority("one");
    let mut running = run(&one).await;
    let mut keys = Vec::new();
    while keys.len() < 4 {
        let year = Duration::from_secs(11 * 365 * 24 * 3600);
        // Sleeps are far apart in ten years; let time jump to near the end.
        if keys.is_empty() {
            let left = one.expires().duration_since(clock()).unwrap();
            tokio::time::advance(left - Duration::from_secs(31 * 24 * 3600)).await;
        }
        timeout(year, running.notices.changed()).await.unwrap().unwrap();
        let notices = running.notices.borrow_and_update();
        keys.push((notices[0].reason, notices[0].key.clone()));
    }
    keys.dedup();
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert_eq!(keys[3].0, "IssuerExpired");
}
