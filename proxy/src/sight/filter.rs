//! Which records somebody wants to see.

use serde::Deserialize;

use super::{id::DecisionId, record::Decision};

/// Records must pass all of what is given. Texts from a query string.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The very one.
    pub id: Option<String>,
    /// `namespace/name`, with or without `:port`; whom it was for or went to.
    pub service: Option<String>,
    /// `namespace/name`, with or without `/rule`.
    pub route: Option<String>,
    /// `503`, or `5xx` for all of a class.
    pub status: Option<String>,
    /// What its path begins with.
    pub path: Option<String>,
    /// Its method.
    pub method: Option<String>,
    /// A reason word.
    pub reason: Option<String>,
    /// A trace.
    pub trace: Option<String>,
    /// `true`: failures only; `false`: none.
    pub failed: Option<bool>,
    /// `true`: only those whose client left before it had a whole response; `false`: none of those.
    pub client_left: Option<bool>,
    /// Newest ones only; or, where they are listened to, the end after so many.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether a filter can be used.
    ///
    /// # Errors
    /// What is wrong with it, and how it is written.
    pub fn check(&self) -> Result<(), String> {
        if let Some(id) = &self.id {
            id.parse::<DecisionId>()?;
        }
        let Some(status) = &self.status else { return Ok(()) };
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let well = match status.strip_suffix("xx") {
            Some(class) => class.len() == 1 && digits(class),
            None => status.len() == 3 && digits(status),
        };
        if well { Ok(()) } else { Err(format!("status {status:?}: use 503, or 5xx for a class")) }
    }

    /// Whether a record is one of them.
    #[must_use]
    pub fn passes(&self, decision: &Decision) -> bool {
        let service = |wanted: &str| decision.services().any(|name| begins(name, wanted, ':'));
        let route = |wanted: &str| decision.route().is_some_and(|name| begins(name, wanted, '/'));
        let status = |wanted: &str| match wanted.strip_suffix("xx") {
            Some(class) => class.parse().ok() == decision.status().map(|status| status / 100),
            None => wanted.parse().ok() == decision.status(),
        };
        let path = |wanted: &str| decision.path().is_some_and(|path| path.starts_with(wanted));
        let id = |wanted: &str| wanted.parse() == Ok(decision.id());
        self.id.as_deref().is_none_or(id)
            && self.service.as_deref().is_none_or(service)
            && self.route.as_deref().is_none_or(route)
            && self.status.as_deref().is_none_or(status)
            && self.path.as_deref().is_none_or(path)
            && self.method.as_deref().is_none_or(|wanted| decision.method() == Some(wanted))
            && self.reason.as_deref().is_none_or(|wanted| decision.reason() == Some(wanted))
            && self.trace.as_deref().is_none_or(|wanted| decision.trace() == Some(wanted))
            && self.failed.is_none_or(|wanted| decision.failed() == wanted)
            && self.client_left.is_none_or(|wanted| decision.client_left() == wanted)
    }
}

/// Whether a name is the wanted one, or that and a part behind a separator.
fn begins(name: &str, wanted: &str, separator: char) -> bool {
    name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}
