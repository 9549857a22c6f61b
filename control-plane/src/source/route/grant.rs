//! What a ReferenceGrant says.

use serde::{Deserialize, Serialize};

/// The specification of a ReferenceGrant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GrantSpec {
    /// Who may refer,
    pub from: Vec<GrantFrom>,
    /// and to what.
    pub to: Vec<GrantTo>,
}

/// Who may refer to something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantFrom {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// What may be referred to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantTo {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name; `None`: all of that kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
