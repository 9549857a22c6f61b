//! Cross-origin sharing: the Fetch standard's CORS protocol, as Gateway API's GEP-1767 has a proxy
//! take part in it.
//!
//! A preflight is answered here and never passed on, so that the application cannot say otherwise;
//! for the same reason its own CORS fields are replaced in other responses. Where an origin is not
//! allowed the fields are absent, and the browser does the rest.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::{
    Message,
    redirect::{Scheme, host_and_port},
};
use crate::fields::{Fields, FieldsMut};

/// Who may share responses, and what of them.
#[derive(Debug)]
pub struct Cors {
    /// Origins that may.
    pub origins: Origins,
    /// Methods that they may use; the safelisted ones they may in any case.
    pub methods: List,
    /// Fields that they may send.
    pub headers: List,
    /// Fields of responses that they may read.
    pub expose: List,
    /// Whether they may send and get credentials.
    pub credentials: bool,
    /// For how long a preflight's answer holds, in seconds; `None` leaves it to the browser.
    pub max_age: Option<HeaderValue>,
}

/// Some origins.
#[derive(Debug)]
pub enum Origins {
    /// All.
    Any,
    /// Those that one of these names.
    Listed(Box<[Origin]>),
}

/// `http[s]://host[:port]`, where the host may be `*` or begin with `*.`.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    host: Host,
    port: u16,
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    Any,
    Exact(Box<str>),
    /// One label or more before it; begins with a dot.
    Below(Box<str>),
}

/// Some words.
#[derive(Debug, PartialEq, Eq)]
pub enum List {
    /// None.
    None,
    /// All (`*`).
    Any,
    /// These, joined by commas.
    Listed(HeaderValue),
}

/// Fields that are ours to set where there is a filter.
const OURS: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// The method that a request asks for, where it is a preflight (Fetch, "CORS protocol").
pub(super) fn preflight_for<M: Message>(request: &M) -> Option<&[u8]> {
    if *request.method() != Method::OPTIONS {
        return None;
    }
    let fields = request.fields();
    fields.get(&header::ORIGIN)?;
    fields.get(&header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    /// The answer to a preflight; `None` for other requests.
    #[must_use]
    pub fn answer(&self, request: &impl Message) -> Option<Response<Bytes>> {
        preflight_for(request)?;
        let fields = request.fields();
        let value = |name| HeaderValue::from_bytes(fields.get(name)?).ok();
        let origin = value(&header::ORIGIN)?;
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        self.apply(Some(&origin), headers);
        if !self.origins.allow(&origin) {
            return Some(response);
        }
        for (list, name, asked) in [
            (
                &self.methods,
                header::ACCESS_CONTROL_ALLOW_METHODS,
                &header::ACCESS_CONTROL_REQUEST_METHOD,
            ),
            (
                &self.headers,
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                &header::ACCESS_CONTROL_REQUEST_HEADERS,
            ),
        ] {
            let allowed = match list {
                List::None => None,
                List::Listed(list) => Some(list.clone()),
                // With credentials a browser takes `*` for a word like any other.
                List::Any if self.credentials => value(asked),
                List::Any => Some(HeaderValue::from_static("*")),
            };
            headers.extend(allowed.map(|allowed| (name, allowed)));
        }
        let age = self.max_age.clone();
        headers.extend(age.map(|age| (header::ACCESS_CONTROL_MAX_AGE, age)));
        Some(response)
    }

    /// Sets the fields of a response to a request that came from `origin`.
    pub fn apply(&self, origin: Option<&HeaderValue>, response: &mut impl FieldsMut) {
        for name in &OURS {
            response.remove(name);
        }
        let constant = matches!(self.origins, Origins::Any) && !self.credentials;
        if !constant {
            // Caches must not give the response to others (Fetch, "CORS protocol and HTTP caches").
            response.append(&header::VARY, &HeaderValue::from_static("Origin"));
        }
        let Some(origin) = origin.filter(|origin| self.origins.allow(origin)) else { return };
        let any = HeaderValue::from_static("*");
        let allowed = if constant { &any } else { origin };
        response.append(&header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            response.append(&header::ACCESS_CONTROL_ALLOW_CREDENTIALS, &yes);
        }
        match &self.expose {
            List::Listed(list) => response.append(&header::ACCESS_CONTROL_EXPOSE_HEADERS, list),
            List::Any if !self.credentials => {
                response.append(&header::ACCESS_CONTROL_EXPOSE_HEADERS, &any);
            }
            List::Any | List::None => {}
        }
    }
}

impl Origins {
    fn allow(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(list) => {
                let Ok(origin) = origin.to_str() else { return false };
                Origin::parts(origin).is_some_and(|parts| list.iter().any(|o| o.is(parts)))
            }
        }
    }
}

impl Origin {
    /// Reads one; `None` where it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, host, port) = Self::parts(text)?;
        let host = match host.strip_prefix('*') {
            None => Host::Exact(host.into()),
            Some("") => Host::Any,
            Some(below) => Host::Below(below.strip_prefix('.').map(|_| below)?.into()),
        };
        let wild = |host: &str| host.contains('*');
        match &host {
            Host::Exact(host) | Host::Below(host) if wild(host) => None,
            _ => Some(Self { scheme, host, port }),
        }
    }

    /// Scheme, host and port of an origin as it is written; the port is the scheme's own where none
    /// is named.
    fn parts(text: &str) -> Option<(Scheme, &str, u16)> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => Scheme::Http,
            _ if scheme.eq_ignore_ascii_case("https") => Scheme::Https,
            _ => return None,
        };
        let (host, port) = host_and_port(authority);
        let valid = !host.is_empty() && !host.contains(['/', '?', '#', '@']);
        valid.then_some((scheme, host, port.unwrap_or(scheme.port())))
    }

    fn is(&self, (scheme, host, port): (Scheme, &str, u16)) -> bool {
        let same = match &self.host {
            Host::Any => true,
            Host::Exact(exact) => exact.eq_ignore_ascii_case(host),
            Host::Below(below) => host.len().checked_sub(below.len()).is_some_and(|at| {
                at > 0 && host.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(below))
            }),
        };
        same && self.scheme == scheme && self.port == port
    }
}

#[cfg(test)]
#[path = "cors_tests.rs"]
mod tests;
