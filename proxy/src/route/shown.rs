//! Conditions as people read them.

use std::fmt;

use super::matching::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, TextMatch};

impl fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, method, headers, query } = self;
        let mut before = "";
        let mut part = |f: &mut fmt::Formatter<'_>, part: &dyn fmt::Display| {
            write!(f, "{before}{part}")?;
            before = " and ";
            Ok(())
        };
        if let Some(method) = method {
            part(f, &format_args!("method {method}"))?;
        }
        if let Some(path) = path {
            part(f, path)?;
        }
        for HeaderMatch { name, value } in headers {
            part(f, &format_args!("header {name} {value}"))?;
        }
        for QueryMatch { name, value } in query {
            part(f, &format_args!("query parameter {name} {value}"))?;
        }
        if before.is_empty() { f.write_str("any request") } else { Ok(()) }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "path is {path}"),
            Self::Prefix(prefix) if prefix.is_empty() => f.write_str("path begins with /"),
            Self::Prefix(prefix) => write!(f, "path begins with {prefix}"),
            Self::Pattern(pattern) => write!(f, "path {pattern}"),
        }
    }
}

impl fmt::Display for TextMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            (false, text) => write!(f, "is {}", text.escape_ascii()),
            (true, text) => write!(f, "matches {}", text.escape_ascii()),
        }
    }
}
