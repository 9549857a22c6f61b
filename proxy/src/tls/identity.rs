//! The workload's identity as the rest of the proxy sees it: read without a lock, replaced whole.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use tokio::sync::{Notify, watch};

use super::{
    TlsError,
    material::{Certificate, Material},
    verify::TrustBundle,
};

/// Handle to the current certificate, key and roots. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Identity(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    current: ArcSwapOption<Material>,
    /// Serializes writers (certify task, discovery stream) and holds roots that came first.
    parts: Mutex<Parts>,
    generation: watch::Sender<u64>,
    refreshes: AtomicU64,
    renewal: Notify,
}

#[derive(Debug, Default)]
struct Parts {
    certificate: Option<Certificate>,
    bundle: Option<TrustBundle>,
    /// The bundle came on a stream that is still open.
    streaming: bool,
}

impl Identity {
    /// An identity that has nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What to handshake with now; `None` until the first certificate. An expired one stays here:
    /// peers refuse it, and saying so is more useful than having nothing.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Material>> {
        self.0.current.load_full()
    }

    /// As [`Identity::current`], without touching the reference count; for short looks.
    #[must_use]
    pub fn peek(&self) -> Guard<Option<Arc<Material>>> {
        self.0.current.load()
    }

    /// Whether there is a certificate and it has not expired.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.peek().as_ref().is_some_and(|material| !material.is_expired(UnixTime::now()))
    }

    /// Wakes on every change of certificate or roots; the value only counts.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Waits for the first certificate.
    pub async fn wait_ready(&self) -> Arc<Material> {
        let mut changed = self.changed();
        loop {
            changed.borrow_and_update();
            if let Some(material) = self.current() {
                return material;
            }
            changed.changed().await.expect("invariant: self holds the sender");
        }
    }

    /// Certificates installed so far.
    #[must_use]
    pub fn refreshes(&self) -> u64 {
        self.0.refreshes.load(Ordering::Relaxed)
    }

    /// Puts a new certificate in force, with the roots that came with it. Open connections are
    /// not touched. Roots of an open stream stay: whoever signed may be a replica that does not know
    /// the newest yet, and the stream tells each change only once.
    ///
    /// # Errors
    /// Where the parts cannot be used; what was in force stays.
    pub fn install(&self, certificate: Certificate, bundle: TrustBundle) -> Result<(), TlsError> {
        let mut parts = self.0.parts.lock();
        let vouches =
            |bundle: &TrustBundle| bundle.vouches_for(certificate.chain(), UnixTime::now()).is_ok();
        let streamed = parts.bundle.clone().filter(|bundle| parts.streaming && vouches(bundle));
        let bundle = streamed.unwrap_or(bundle);
        let material = Material::new(certificate.clone(), bundle.clone())?;
        parts.certificate = Some(certificate);
        parts.bundle = Some(bundle);
        self.0.refreshes.fetch_add(1, Ordering::Relaxed);
        self.publish(material);
        Ok(())
    }

    /// Puts roots in force that a stream brought. Asks for a new certificate where they do not vouch for ours.
    ///
    /// # Errors
    /// Where the roots cannot be used; what was in force stays.
    pub fn set_trust_bundle(&self, bundle: TrustBundle) -> Result<(), TlsError> {
        let mut parts = self.0.parts.lock();
        if parts.bundle.as_ref() == Some(&bundle) {
            parts.streaming = true;
            return Ok(());
        }
        if let Some(certificate) = parts.certificate.clone() {
            let vouched = bundle.vouches_for(certificate.chain(), UnixTime::now());
            let material = Material::new(certificate, bundle.clone())?;
            self.publish(material);
            if let Err(error) = vouched {
                tracing::warn!(%error, "new roots do not vouch for our certificate; renewing it");
                self.renew();
            }
        }
        parts.bundle = Some(bundle);
        parts.streaming = true;
        Ok(())
    }

    /// The stream has ended: its roots stay, but the next certificate's are newer.
    pub fn stream_ended(&self) {
        self.0.parts.lock().streaming = false;
    }

    /// The roots in force.
    #[must_use]
    pub fn trust_bundle(&self) -> Option<TrustBundle> {
        self.0.parts.lock().bundle.clone()
    }

    /// Asks the certify task for a new certificate now.
    pub fn renew(&self) {
        self.0.renewal.notify_one();
    }

    /// Resolves once [`Identity::renew`] was called.
    pub(super) async fn renewal_asked(&self) {
        self.0.renewal.notified().await;
    }

    /// Forgets that [`Identity::renew`] was called.
    pub(super) async fn forget_renewal(&self) {
        tokio::select! {
            biased;
            () = self.renewal_asked() => {}
            () = std::future::ready(()) => {}
        }
    }

    fn publish(&self, material: Material) {
        self.0.current.store(Some(Arc::new(material)));
        self.0.generation.send_modify(|generation| *generation += 1);
    }
}
