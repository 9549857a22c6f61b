//! Requests and connections of Services that have routes: which one is taken, and whom it leads to.
//!
//! The codecs hand a request in ([`Requests::course`]) and do what comes out: give an answer, or send
//! the changed request to the upstream that was found, as they would have sent it to the Service's own.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};
use remora_core::names::headers::FAULT;
use tokio::time::{Instant, sleep_until};

use super::{
    Outbound, Snapshot, Upstream,
    books::{self, Books},
    http::Requests,
    mirror::Copied,
    record::Told,
    snapshot::By,
};
use crate::{
    balance::{affinity, policy::Affinity, token::Token},
    discovery::{Resolution, Service, ServiceId, Target},
    error::Error,
    fields::{Fields, FieldsMut},
    http::answer,
    metrics::flow::Rpc,
    route::{
        self, Filter, Message, Route,
        backend::{Backend, Backends, NoBackend, Weighted},
        fault::Abort,
        stream::StreamRoute,
    },
    sight::{finished::Described, story::Story},
};

/// How long a client may take to say its first word where nothing but a name in it says where its
/// connection goes.
pub(super) const NAME_WITHIN: Duration = Duration::from_secs(10);

/// What becomes of a request.
pub(super) enum Course<M> {
    /// It is answered.
    Answer(Response<Bytes>),
    /// It goes to an upstream.
    Go(Box<Going<M>>),
}

/// A request on its way.
pub(super) struct Going<M> {
    pub(super) upstream: Arc<Upstream>,
    /// Whose route it took.
    parent: Arc<Upstream>,
    pub(super) changes: Changes,
    /// For others, once its body is there.
    pub(super) copies: Vec<Copied<M>>,
}

/// What is still to be done to the response.
#[derive(Debug, Clone)]
pub(super) struct Changes {
    route: Arc<Route>,
    /// Which of the route's conditions the request met.
    condition: usize,
    /// Which of its backends was chosen.
    backend: Option<usize>,
    /// Of the request, before it was changed.
    origin: Option<HeaderValue>,
}

impl Changes {
    fn of(found: route::Found<'_>, request: &impl Message) -> Self {
        let route::Found { route, condition, .. } = found;
        let origin = route::origin(&route.filters, request.fields());
        Self { route: Arc::clone(route), condition, backend: None, origin }
    }

    /// Changes a response as the backend's filters say, and then as the route's do.
    pub(super) fn apply(&self, response: &mut impl FieldsMut) {
        let backend = match (&self.route.backends, self.backend) {
            (Backends::Weighted(list), Some(at)) => list.at(at),
            _ => None,
        };
        for filters in [backend.map_or(&[][..], |b| &b.filters), &self.route.filters] {
            route::finish(filters, self.origin.as_ref(), response);
        }
    }

    fn answer(&self, answer: route::Answer) -> Response<Bytes> {
        match answer {
            route::Answer::Preflight(response) => response,
            route::Answer::Redirect(mut response) => {
                self.apply(response.headers_mut());
                response
            }
        }
    }

    /// A moment of the Service whose route was taken.
    fn snapshot(&self, parent: &Arc<Upstream>) -> Snapshot {
        Snapshot { routes: None, by: self.by(parent), ..parent.snapshot() }
    }

    fn by(&self, parent: &Arc<Upstream>) -> By {
        let (route, parent) = (Arc::clone(&self.route), Arc::clone(parent));
        By::Route { route, condition: self.condition, backend: self.backend, parent }
    }

    /// The route that was taken.
    pub(super) fn route(&self) -> &Arc<Route> {
        &self.route
    }
}

impl<M> Going<M> {
    /// A moment of the upstream, with the route's policy.
    pub(super) fn snapshot(&self) -> Snapshot {
        let by = self.changes.by(&self.parent);
        Snapshot { routes: None, by, ..self.upstream.snapshot() }
    }
}

/// The request that a course is found for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    pub(super) grpc: bool,
    /// It stays HTTP, so that a copy of it can be made.
    pub(super) copied: bool,
}

impl Requests {
    /// What becomes of a request of a Service with routes; an answer is counted, and a failure recorded
    /// too. The request is changed as its route says.
    pub(super) async fn course<M: Message + Described + Clone>(
        &self,
        (upstream, routes): (&Arc<Upstream>, &[Arc<Route>]),
        request: &mut M,
        arrived: Arrived,
        story: &Story,
    ) -> Course<M> {
        let grpc = arrived.grpc;
        let Some(found) = route::find(routes, request) else {
            let error = Error::NoRoute(format!("{} has none for this request", upstream.name()));
            let told = Told { head: request, grpc, client: self.client, story };
            return Course::Answer(self.not_sent(upstream, told, &error, None));
        };
        found.route.traffic.requests.fetch_add(1, Ordering::Relaxed);
        let mut changes = Changes::of(found, request);
        let steps = self.steps(upstream, found, request, &mut changes, (arrived, story.started));
        match steps.await {
            Ok(Course::Answer(mut response)) => {
                let told = Told { head: request, grpc, client: self.client, story };
                self.answered_by_route(upstream, told, &mut response, &changes);
                Course::Answer(response)
            }
            Ok(going) => going,
            Err(error) => {
                let told = Told { head: request, grpc, client: self.client, story };
                Course::Answer(self.not_sent(upstream, told, &error, Some(&changes)))
            }
        }
    }

    async fn steps<M: Message + Clone>(
        &self,
        parent: &Arc<Upstream>,
        found: route::Found<'_>,
        request: &mut M,
        changes: &mut Changes,
        (arrived, started): (Arrived, Instant),
    ) -> Result<Course<M>, Error> {
        let route::Found { route, prefix, .. } = found;
        if let Some(abort) = self.fault(route, request.fields(), started).await? {
            let mut response = aborted(abort, arrived.grpc);
            changes.apply(response.headers_mut());
            return Ok(Course::Answer(response));
        }
        if let Some(answer) = route.answer(request, prefix) {
            return Ok(Course::Answer(changes.answer(answer)));
        }
        let backend = self.backend(parent, route, request.fields()).await?;
        changes.backend = backend.map(|(at, _)| at);
        let (upstream, filters) = match backend {
            None => (Arc::clone(parent), &[][..]),
            Some((_, backend)) => {
                if let Some(answer) = route::answer(&backend.filters, request, prefix) {
                    return Ok(Course::Answer(changes.answer(answer)));
                }
                changes.origin = changes
                    .origin
                    .take()
                    .or_else(|| route::origin(&backend.filters, request.fields()));
                let upstream = self.outbound.backend(parent, backend, &route.name).await?;
                (upstream, &*backend.filters)
            }
        };
        let original = request.path().to_owned();
        let mut copies = Vec::new();
        for filters in [&*route.filters, filters] {
            route::prepare(filters, request, (&original, prefix));
            if arrived.copied {
                copies.extend(self.copies(filters, request));
            }
        }
        let (parent, changes) = (Arc::clone(parent), changes.clone());
        Ok(Course::Go(Box::new(Going { upstream, parent, changes, copies })))
    }

    /// Holds a request up, where it is to be, and says how it is refused, where that is to be.
    async fn fault(
        &self,
        route: &Route,
        fields: &impl Fields,
        started: Instant,
    ) -> Result<Option<Abort>, Error> {
        let Some(fault) = &route.fault else { return Ok(None) };
        let fate = fault.decide(fields, &mut self.outbound.rng.lock());
        if let Some(delay) = fate.delay {
            route.traffic.delayed.fetch_add(1, Ordering::Relaxed);
            let until = Instant::now() + delay;
            let bound = route.timeouts.request.map(|bound| (started + bound, bound));
            match bound.filter(|(deadline, _)| *deadline <= until) {
                None => sleep_until(until).await,
                Some((deadline, bound)) => {
                    sleep_until(deadline).await;
                    return Err(Error::RequestTimeout(bound));
                }
            }
        }
        if fate.abort.is_some() {
            route.traffic.aborted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(fate.abort)
    }

    /// Chooses a backend; `None`: the Service itself.
    async fn backend<'a>(
        &self,
        parent: &Upstream,
        route: &'a Route,
        fields: &impl Fields,
    ) -> Result<Option<(usize, &'a Backend)>, Error> {
        let Backends::Weighted(list) = &route.backends else { return Ok(None) };
        let had = match route.affinity.as_ref().and_then(|by| token(by, fields)) {
            Some(token) => self.outbound.had(parent, list, token).await,
            None => None,
        };
        let at = match had {
            Some(at) => at,
            None => {
                let picked = list.pick(&mut self.outbound.rng.lock());
                picked.map_err(|none| no_backend(&route.name, &none))?
            }
        };
        Ok(list.at(at).map(|backend| (at, backend)))
    }

    fn copies<'a, M: Message + Clone>(
        &'a self,
        filters: &'a [Filter],
        request: &'a M,
    ) -> impl Iterator<Item = Copied<M>> + 'a {
        let mirrors = filters.iter().filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(mirror),
            _ => None,
        });
        let wanted = mirrors.filter(|mirror| mirror.wants(&mut self.outbound.rng.lock()));
        wanted.map(|mirror| Copied { mirror: Arc::clone(mirror), request: request.clone() })
    }

    /// Counts and records a request that came to no upstream, and makes its answer.
    fn not_sent(
        &self,
        upstream: &Arc<Upstream>,
        told: Told<'_>,
        error: &Error,
        changes: Option<&Changes>,
    ) -> Response<Bytes> {
        let snapshot = changes.map(|changes| changes.snapshot(upstream));
        let by = snapshot.as_ref().map_or(&By::Dialled, |snapshot| &snapshot.by);
        Books { upstream, by }.open();
        let mut response = self.outbound.failed((upstream, snapshot.as_ref()), told, error);
        if let Some(changes) = changes {
            changes.apply(response.headers_mut());
        }
        response
    }

    /// Counts a request that its route answered on purpose, and records it if somebody wants to know.
    fn answered_by_route(
        &self,
        upstream: &Arc<Upstream>,
        told: Told<'_>,
        response: &mut Response<Bytes>,
        changes: &Changes,
    ) {
        if let Some(id) = told.story.explained {
            id.write(response.headers_mut());
        }
        // Counted for the Service that was called, whichever backend would have been.
        let changes = Changes { backend: None, ..changes.clone() };
        let snapshot = changes.snapshot(upstream);
        let code = answer::grpc_status(response.headers()).filter(|_| told.grpc);
        let given = books::promised(response.status(), code.map_or(Rpc::No, Rpc::Said), None);
        let books = Books { upstream, by: &snapshot.by };
        books.open();
        books.close(&given, told.story.started, Instant::now());
        self.outbound.answered((upstream, &snapshot), told, &given);
    }
}

impl Outbound {
    /// The endpoints of a backend; the routes that it may have itself do not apply.
    pub(super) async fn backend(
        &self,
        parent: &Arc<Upstream>,
        backend: &Backend,
        route: &str,
    ) -> Result<Arc<Upstream>, Error> {
        match &**parent {
            Upstream::Service(service) if service.id == backend.id => Ok(Arc::clone(parent)),
            _ => self.named(&backend.target, &backend.id, route).await.map(Arc::new),
        }
    }

    /// The Service with a name.
    pub(super) async fn named(
        &self,
        target: &Target,
        id: &ServiceId,
        route: &str,
    ) -> Result<Upstream, Error> {
        let why = match self.resolve(target).await? {
            Resolution::Service(service) => return Ok(Upstream::Service(service)),
            Resolution::Pod(pod) => return Ok(Upstream::Pod(pod)),
            Resolution::NotOurs => "there is no such Service".into(),
            Resolution::Refused(why) => why,
        };
        let none = NoBackend::Invalid { backend: id.clone(), why: (*why).into() };
        Err(no_backend(route, &none))
    }

    /// The backend that has an endpoint, whatever its weight.
    async fn had(&self, parent: &Upstream, list: &Weighted, token: Token) -> Option<usize> {
        let has = |service: &Service| service.state().endpoints.find(token).is_some();
        for (at, backend) in list.reachable() {
            let found = match parent {
                Upstream::Service(service) if service.id == backend.id => has(service),
                // One that is not known yet is asked for: the session may be older than this proxy.
                _ => match self.resolve(&backend.target).await {
                    Ok(Resolution::Service(service)) => has(&service),
                    _ => false,
                },
            };
            if found {
                return Some(at);
            }
        }
        None
    }

    /// Whom a connection is carried to that asks for a name in TLS, or for none.
    pub(super) async fn stream_upstream(
        &self,
        upstream: &Upstream,
        asked: Option<&str>,
    ) -> Result<Upstream, Error> {
        let own = || Ok(upstream.clone());
        let Upstream::Service(service) = upstream else { return own() };
        let routes = Arc::clone(&service.state().stream_routes);
        if routes.is_empty() {
            return own();
        }
        let Some(route) = route::stream::find(&routes, asked) else {
            let name = asked.map_or("a connection without a server name".to_owned(), str::to_owned);
            return Err(Error::NoRoute(format!("{} has none for {name}", service.id)));
        };
        let Backends::Weighted(list) = &route.backends else { return own() };
        let picked = list.pick(&mut self.rng.lock());
        let at = picked.map_err(|none| no_backend(&route.name, &none))?;
        match list.at(at) {
            Some(backend) if backend.id != service.id => {
                self.named(&backend.target, &backend.id, &route.name).await
            }
            _ => own(),
        }
    }
}

impl Upstream {
    /// How connections that are carried as bytes find their way.
    pub(super) fn stream_ways(&self) -> StreamWays {
        let Self::Service(service) = self else { return StreamWays::default() };
        let state = service.state();
        let named = |route: &StreamRoute| !route.names.is_empty();
        let routes = &state.stream_routes;
        let any = !routes.is_empty();
        StreamWays {
            by_name: routes.iter().any(named),
            only_by_name: any && routes.iter().all(named),
            only_bytes: any && state.routes.is_empty(),
        }
    }
}

/// How connections that are carried as bytes find their way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StreamWays {
    /// The name that the client asks for in TLS matters.
    pub(super) by_name: bool,
    /// There is no way without one.
    pub(super) only_by_name: bool,
    /// All connections are carried as bytes, whatever they speak: there are routes for that alone.
    pub(super) only_bytes: bool,
}

fn no_backend(route: &str, none: &NoBackend) -> Error {
    Error::NoBackend { route: route.to_owned(), why: none.to_string() }
}

/// The endpoint that a client says it had.
fn token(by: &Affinity, fields: &impl Fields) -> Option<Token> {
    match by {
        Affinity::Cookie { name, .. } => affinity::named(fields, name),
        Affinity::Header { name } => affinity::in_field(fields, name),
        // Each backend remembers its own clients.
        Affinity::ClientAddress { .. } => None,
    }
}

/// The answer that a fault asks for.
fn aborted(abort: Abort, grpc: bool) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    if grpc {
        answer::grpc(response.headers_mut(), abort.grpc, "fault injected by a route");
    } else {
        *response.status_mut() = abort.http;
    }
    let abort = HeaderValue::from_static("abort");
    response.headers_mut().insert(HeaderName::from_static(FAULT), abort);
    response
}

#[cfg(test)]
#[path = "routed_tests.rs"]
mod tests;
