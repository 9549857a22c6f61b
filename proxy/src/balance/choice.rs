//! Why an endpoint was chosen, for whoever asks afterwards.

/// What a choice went by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// There was one that could be chosen.
    OnlyOne,
    /// It cost less than the other that was drawn.
    LowerCost,
    /// Both cost the same but for noise, and it had fewer requests in flight, or as many.
    FewerInFlight,
    /// It was its turn.
    RoundRobin,
    /// It was drawn.
    Random,
    /// It owns the request's key.
    Hash,
    /// The client had it before.
    Affinity,
    /// It was ejected, and this request says whether it is well.
    Probe,
    /// The near ones cost too much.
    SpillOver,
}

impl By {
    /// For records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnlyOne => "only-one",
            Self::LowerCost => "lower-cost",
            Self::FewerInFlight => "fewer-in-flight",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Hash => "hash",
            Self::Affinity => "affinity",
            Self::Probe => "probe",
            Self::SpillOver => "spill-over",
        }
    }
}

/// How an endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What it went by.
    pub by: By,
    /// Position of the one that it was compared with, where there was one.
    pub other: Option<usize>,
    /// What the chosen one and the other cost, in the unit of `by`: seconds times requests for
    /// [`By::LowerCost`] with peak EWMA, requests in flight otherwise; zeros where nothing was
    /// compared.
    pub costs: [f64; 2],
}

impl Choice {
    /// One that compared nothing.
    #[must_use]
    pub fn plain(by: By) -> Self {
        Self { by, other: None, costs: [0.0; 2] }
    }

    /// One of a pair.
    #[must_use]
    pub fn of_two(by: By, other: usize, costs: [f64; 2]) -> Self {
        Self { by, other: Some(other), costs }
    }
}
