//! The serving certificate: made and renewed in a Secret, its CA put into the webhook's
//! configuration, and served once API servers trust it.
//!
//! Three tasks, told apart by what they watch. [`keep`] watches the Secret: absent, it is made; of
//! several replicas one wins and the others read what it made; at two thirds of its life the
//! certificate is replaced. [`bundle::keep`] watches the MutatingWebhookConfiguration and adds the
//! CAs that its caBundles lack. [`serving::choose`] turns to a new certificate only when its CA has
//! been in every caBundle for a while, because API servers learn of it by a watch of theirs. Until
//! then each replica goes on with the certificate that it has in memory.

pub(crate) mod bundle;
pub(crate) mod material;
pub(crate) mod serving;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use remora_core::{drain, names::INJECTOR_TLS_SECRET};
use rustls_pki_types::CertificateDer;
use tokio::{sync::watch, time::Instant};

use self::material::Material;
use super::{
    cluster::{Pauses, REQUEST},
    metrics::Metrics,
};

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Between two looks at the clock.
    pub(crate) look: Duration,
    /// From the CA's arrival in the caBundles to the first use of its leaf.
    pub(crate) settle: Duration,
    /// Between two certificates that one replica makes; replicas whose clocks disagree would
    /// otherwise replace each other's without a pause.
    pub(crate) apart: Duration,
    /// Longest wait for that where nothing is served yet.
    pub(crate) patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(60),
            settle: Duration::from_secs(5),
            apart: Duration::from_secs(10),
            patience: Duration::from_secs(30),
        }
    }
}

/// What the tasks share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    /// Namespace of the Secret and of the Service.
    pub(crate) namespace: String,
    /// Name of the MutatingWebhookConfiguration.
    pub(crate) configuration: String,
    /// DNS names of the webhook.
    pub(crate) names: Vec<String>,
    pub(crate) clock: fn() -> SystemTime,
    pub(crate) timing: Timing,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: drain::Watch,
}

/// The newest certificate, once there is one.
pub(crate) type Newest = watch::Receiver<Option<Arc<Material>>>;

/// Keeps the Secret good and tells of each new certificate in it, until draining begins.
pub(crate) async fn keep(context: Context, newest: watch::Sender<Option<Arc<Material>>>) {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={INJECTOR_TLS_SECRET}"));
    let mut stream = std::pin::pin!(watcher(api.clone(), only).default_backoff());
    let mut keeper = Keeper { context, api, newest, seen: Seen::Unknown, listed: None, made: None };
    let mut pauses = Pauses::default();
    let mut next_look = Instant::now();
    loop {
        tokio::select! {
            () = keeper.context.drain.draining() => return,
            event = stream.next() => match event {
                Some(Ok(event)) => keeper.observe(event),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the Secret {INJECTOR_TLS_SECRET} cannot be watched");
                    continue;
                }
                None => return,
            },
            () = tokio::time::sleep_until(next_look) => {}
        }
        let wait = match keeper.reconcile().await {
            Ok(wait) => {
                pauses.reset();
                wait
            }
            Err(error) => {
                keeper.context.metrics.certificate_renewal("failed");
                tracing::error!(error, "no new serving certificate; trying again");
                pauses.next_pause()
            }
        };
        next_look = Instant::now() + wait;
    }
}

/// What is known of the Secret.
enum Seen {
    Unknown,
    Absent,
    Present(Box<Secret>),
}

struct Keeper {
    context: Context,
    api: Api<Secret>,
    newest: watch::Sender<Option<Arc<Material>>>,
    seen: Seen,
    /// What a list that is under way has brought.
    listed: Option<Box<Secret>>,
    /// When the last certificate was made here.
    made: Option<Instant>,
}

impl Keeper {
    fn observe(&mut self, event: Event<Secret>) {
        match event {
            Event::Init => self.listed = None,
            Event::InitApply(secret) => self.listed = Some(Box::new(secret)),
            Event::InitDone => self.seen = self.listed.take().map_or(Seen::Absent, Seen::Present),
            Event::Apply(secret) => self.seen = Seen::Present(Box::new(secret)),
            Event::Delete(_) => self.seen = Seen::Absent,
        }
    }

    /// Makes what is missing, bad or old, and tells what is there; returns when to look again.
    async fn reconcile(&mut self) -> Result<Duration, String> {
        let look = self.context.timing.look;
        let now = (self.context.clock)();
        let (version, previous) = match &self.seen {
            Seen::Unknown => return Ok(look),
            Seen::Absent => (None, Vec::new()),
            Seen::Present(secret) => {
                match Material::read(secret, &self.context.names, now) {
                    Ok(material) if !material.is_due(now) => {
                        self.tell(material);
                        return Ok(look);
                    }
                    Ok(material) => {
                        tracing::info!("the serving certificate is due; making the next");
                        // Good as yet, and all that there is where the next cannot be written.
                        self.tell(material);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the Secret {INJECTOR_TLS_SECRET} is no good; replacing it");
                    }
                }
                (secret.metadata.resource_version.clone(), material::roots_of(secret))
            }
        };
        let too_soon = self.made.and_then(|made| {
            self.context.timing.apart.checked_sub(made.elapsed()).filter(|wait| !wait.is_zero())
        });
        if let Some(wait) = too_soon {
            return Ok(wait);
        }
        self.renew(version, previous, now).await.map(|()| look)
    }

    /// Replaces the Secret of that version, or makes one where there is none.
    async fn renew(
        &mut self,
        version: Option<String>,
        mut previous: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<(), String> {
        // A Secret that was deleted took its CAs along; what replicas serve must stay trusted.
        if let Some(known) = self.newest.borrow().as_ref() {
            for root in known.roots() {
                if !previous.contains(root) {
                    previous.push(root.clone());
                }
            }
        }
        let material =
            Material::make(&self.context.names, &previous, now).map_err(|e| e.to_string())?;
        let secret = material.secret(&self.context.namespace, version.clone());
        let params = PostParams::default();
        let writing = async {
            match version {
                Some(_) => self.api.replace(INJECTOR_TLS_SECRET, &params, &secret).await,
                None => self.api.create(&params, &secret).await,
            }
        };
        match tokio::time::timeout(REQUEST, writing).await {
            Ok(Ok(written)) => {
                tracing::info!("serving certificate made");
                self.context.metrics.certificate_renewal("made");
                self.made = Some(Instant::now());
                self.seen = Seen::Present(Box::new(written));
                self.tell(material);
                Ok(())
            }
            // Another replica was faster; the watch brings what it made.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                self.context.metrics.certificate_renewal("conflict");
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server does not answer".to_owned()),
        }
    }

    fn tell(&self, material: Material) {
        self.newest.send_if_modified(|current| {
            let news = current.as_ref().is_none_or(|current| !current.is_same(&material));
            if news {
                *current = Some(Arc::new(material));
            }
            news
        });
    }
}
