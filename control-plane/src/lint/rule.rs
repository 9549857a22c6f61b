//! The table of rules. `docs/lint.md` says of each why it is one, and the mend.

use std::fmt;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It does not do what is written.
    Error,
    /// It works, and hardly as it is meant; or these files do not say enough.
    Warning,
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A file or an object that the control plane would refuse.
    ManifestInvalid,
    /// A field that nothing reads.
    ManifestSlip,
    /// The value of an annotation cannot be used.
    AnnotationValue,
    /// An annotation that does nothing, or something else than it seems.
    AnnotationIgnored,
    /// The selector of a Service picks nothing.
    SelectorMatchesNoPod,
    /// No pod has a port of the name that a Service means.
    TargetPortUnknown,
    /// A route that is attached to nothing.
    RouteWithoutParent,
    /// A route on a Service that is not there.
    ParentMissing,
    /// A route on a Service that has no address of its own.
    ParentKind,
    /// A route on a port that a Service does not have.
    ParentPort,
    /// A route beside one of a more specific kind.
    RouteConflicted,
    /// A rule that says what cannot be done.
    RuleInvalid,
    /// A rule on requests of a port that is carried as bytes.
    RouteOnOpaquePort,
    /// A backend that is not there.
    BackendMissing,
    /// A port that the backend does not have.
    BackendPort,
    /// A backend that cannot be balanced over.
    BackendKind,
    /// A reference that nobody allowed.
    GrantMissing,
    /// A rule that leads nowhere.
    NoBackend,
    /// All backends have the weight 0.
    WeightsZero,
    /// A rule that no request reaches.
    RuleShadowed,
    /// A match that no request reaches.
    MatchShadowed,
    /// A retry of what may have been done.
    RetryUnsafe,
    /// A retry that never happens.
    RetryNever,
    /// Attempts that do not fit into the whole.
    RetryBeyondTimeout,
    /// A time-out that another one always comes before.
    TimeoutNever,
    /// A probe that the inbound policy refuses.
    ProbeDenied,
    /// A probe of a port that its container does not have.
    ProbePort,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::ManifestInvalid,
        Self::ManifestSlip,
        Self::AnnotationValue,
        Self::AnnotationIgnored,
        Self::SelectorMatchesNoPod,
        Self::TargetPortUnknown,
        Self::RouteWithoutParent,
        Self::ParentMissing,
        Self::ParentKind,
        Self::ParentPort,
        Self::RouteConflicted,
        Self::RuleInvalid,
        Self::RouteOnOpaquePort,
        Self::BackendMissing,
        Self::BackendPort,
        Self::BackendKind,
        Self::GrantMissing,
        Self::NoBackend,
        Self::WeightsZero,
        Self::RuleShadowed,
        Self::MatchShadowed,
        Self::RetryUnsafe,
        Self::RetryNever,
        Self::RetryBeyondTimeout,
        Self::TimeoutNever,
        Self::ProbeDenied,
        Self::ProbePort,
    ];

    /// As findings and the documentation call it.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::ManifestInvalid => "manifest-invalid",
            Self::ManifestSlip => "manifest-slip",
            Self::AnnotationValue => "annotation-value",
            Self::AnnotationIgnored => "annotation-ignored",
            Self::SelectorMatchesNoPod => "selector-matches-no-pod",
            Self::TargetPortUnknown => "target-port-unknown",
            Self::RouteWithoutParent => "route-without-parent",
            Self::ParentMissing => "parent-missing",
            Self::ParentKind => "parent-kind",
            Self::ParentPort => "parent-port",
            Self::RouteConflicted => "route-conflicted",
            Self::RuleInvalid => "rule-invalid",
            Self::RouteOnOpaquePort => "route-on-opaque-port",
            Self::BackendMissing => "backend-missing",
            Self::BackendPort => "backend-port",
            Self::BackendKind => "backend-kind",
            Self::GrantMissing => "grant-missing",
            Self::NoBackend => "no-backend",
            Self::WeightsZero => "weights-zero",
            Self::RuleShadowed => "rule-shadowed",
            Self::MatchShadowed => "match-shadowed",
            Self::RetryUnsafe => "retry-unsafe",
            Self::RetryNever => "retry-never",
            Self::RetryBeyondTimeout => "retry-beyond-timeout",
            Self::TimeoutNever => "timeout-never",
            Self::ProbeDenied => "probe-denied",
            Self::ProbePort => "probe-port",
        }
    }

    /// How bad it is where the files say enough.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::ManifestSlip
            | Self::AnnotationIgnored
            | Self::SelectorMatchesNoPod
            | Self::RouteWithoutParent
            | Self::MatchShadowed
            | Self::RetryUnsafe
            | Self::RetryNever
            | Self::RetryBeyondTimeout
            | Self::TimeoutNever => Severity::Warning,
            _ => Severity::Error,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl Severity {
    /// `error` or `warning`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
