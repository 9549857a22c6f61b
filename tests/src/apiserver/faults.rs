//! What can be made to go wrong.

use std::time::Duration;

use super::access::Asked;

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No answer ever comes; the connection stays open.
    Hang,
    /// The answer comes after this long.
    Slow(Duration),
    /// The connection is closed instead of an answer.
    Reset,
    /// 429 in plain text with `Retry-After: 1`, as priority and fairness answers.
    TooManyRequests,
    /// 500.
    Internal,
    /// 503 with `Retry-After: 5`, as a starting server answers.
    Unavailable,
    /// 401.
    Unauthorized,
    /// 403, whatever the roles say.
    Forbidden,
}

/// How open watches end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// With a last chunk, as after `timeoutSeconds`.
    Clean,
    /// Without one: the connection breaks.
    Broken,
    /// With an `ERROR` event of code 410, and then a last chunk.
    Expired,
}

/// Which requests go wrong, and how.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) verb: String,
    pub(super) resource: String,
    /// How many more times; none for ever.
    pub(super) left: Option<usize>,
    pub(super) fault: Fault,
}

/// The fault of a request, which is thereby used up once.
pub(super) fn strike(rules: &mut [Rule], asked: &Asked) -> Option<Fault> {
    let hits = |rule: &&mut Rule| {
        (rule.verb == "*" || rule.verb == asked.verb)
            && (rule.resource == "*" || rule.resource == asked.resource)
            && rule.left != Some(0)
    };
    let rule = rules.iter_mut().find(hits)?;
    if let Some(left) = &mut rule.left {
        *left -= 1;
    }
    Some(rule.fault)
}
