//! Mutating webhooks, called as an API server calls them.

use std::sync::Arc;

use serde_json::Value;

use super::{Shared, kinds::Kind, status::Refusal};

/// The object after every webhook that wants it, and their warnings.
pub(super) async fn admitted(
    _shared: &Arc<Shared>,
    _kind: &Kind,
    object: Value,
    _user: &str,
    _dry_run: bool,
) -> Result<(Value, Vec<String>), Refusal> {
    Ok((object, Vec::new()))
}
