//! Routes for connections that are carried as bytes (TLSRoute, TCPRoute).

use super::backend::Backends;

/// Connections that match go to the backends.
#[derive(Debug)]
pub struct StreamRoute {
    /// `namespace/name/rule`.
    pub name: Box<str>,
    /// Names in the client's greeting; empty: every connection.
    pub names: Box<[ServerName]>,
    /// Whom they go to; filters do not apply.
    pub backends: Backends,
}

/// A name of the TLS extension (RFC 6066 §3), or all below one.
#[derive(Debug, PartialEq, Eq)]
pub struct ServerName {
    name: Box<str>,
    /// The name begins with a dot; one label or more comes before it.
    below: bool,
}

impl ServerName {
    /// `example.com`, or `*.example.com` for whatever is below it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let below = name.strip_prefix('*').filter(|rest| rest.starts_with('.'));
        Self { name: below.unwrap_or(name).to_ascii_lowercase().into(), below: below.is_some() }
    }

    fn is(&self, asked: &str) -> bool {
        if self.below {
            return asked.len() > self.name.len() && asked.ends_with(&*self.name);
        }
        asked == &*self.name
    }
}

/// The first route that a connection takes, by the name that it asks for, in lower case; `None`:
/// none of them.
#[must_use]
pub fn find<'a>(routes: &'a [StreamRoute], asked: Option<&str>) -> Option<&'a StreamRoute> {
    routes.iter().find(|route| {
        route.names.is_empty()
            || asked.is_some_and(|asked| route.names.iter().any(|name| name.is(asked)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, names: &[&str]) -> StreamRoute {
        let names = names.iter().map(|name| ServerName::new(name)).collect();
        StreamRoute { name: name.into(), names, backends: Backends::Own }
    }

    #[test]
    fn the_first_route_with_the_name_is_taken() {
        let mut routes =
            vec![route("exact", &["a.example"]), route("below", &["*.example", "b.test"])];
        let found = |routes: &[StreamRoute], asked| find(routes, asked).map(|r| r.name.to_string());
        for (asked, wanted) in [
            (Some("a.example"), Some("exact")),
            (Some("c.example"), Some("below")),
            (Some("a.b.example"), Some("below")),
            (Some("b.test"), Some("below")),
            (Some("example"), None),
            (Some(".example"), None),
            (Some("a.test"), None),
            (None, None),
        ] {
            assert_eq!(found(&routes, asked).as_deref(), wanted, "{asked:?}");
        }
        routes.push(route("all", &[]));
        assert_eq!(found(&routes, None).as_deref(), Some("all"));
        assert_eq!(found(&routes, Some("a.test")).as_deref(), Some("all"));
    }
}
