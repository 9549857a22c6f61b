//! Log set-up: one subscriber per process whose filter can change while it runs.

use std::{fmt, io::IsTerminal, str::FromStr};

use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    layer::{Layered, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

/// Target of the spans of a program's own work. They are made where a [`Bridge`] takes them, whatever
/// the log's filter says, and nowhere else.
pub const SPANS: &str = "remora::spans";

/// Takes the spans of [`SPANS`] out of the process.
pub type Bridge = Box<dyn Layer<Registry> + Send + Sync>;

/// A span of ours under way, if they are taken.
///
/// `$name` is what is done; it is a call to a server where `$kind` is `client`, else `internal`.
#[macro_export]
macro_rules! span {
    ($kind:literal, $name:literal) => {
        tracing::info_span!(
            target: $crate::telemetry::SPANS,
            $name,
            otel.kind = $kind,
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
        )
    };
}

/// Says in a span of ours that what was done failed.
pub fn failed(span: &tracing::Span, error: &dyn fmt::Display) {
    if !span.is_disabled() {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", tracing::field::display(error));
    }
}

type Base = Layered<Option<Bridge>, Registry>;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("log format {other:?}: use text or json")),
        }
    }
}

/// Changes the filter of the running process.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Base>,
    /// Whether spans are taken.
    bridged: bool,
}

/// A filter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The text is no filter.
    #[error("log filter {filter:?}: {problem}; examples: info, warn,remora_proxy=debug")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A subscriber is installed already, or gone.
    #[error("logging is already set up in this process")]
    Installed,
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogHandle").field(&self.current()).finish()
    }
}

impl LogHandle {
    /// Puts a new filter in force.
    ///
    /// # Errors
    /// Where it cannot be parsed; the old one then stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let filter = with_spans(parse(filter)?, self.bridged);
        self.filter.reload(filter).map_err(|_| LogError::Installed)
    }

    /// The filter in force.
    #[must_use]
    pub fn current(&self) -> String {
        // What is said of spans is not the filter's.
        let said = |targets: &Targets| -> String {
            let all = targets.to_string();
            let log = all.split(',').filter(|part| !part.starts_with(SPANS));
            log.collect::<Vec<_>>().join(",")
        };
        self.filter.with_current(said).unwrap_or_default()
    }
}

/// Installs the process's subscriber, writing to standard error.
///
/// # Errors
/// Where the filter cannot be parsed or a subscriber is there already.
pub fn init(filter: &str, format: LogFormat) -> Result<LogHandle, LogError> {
    init_with(filter, format, None)
}

/// The same for a program whose own work is traced.
///
/// # Errors
/// As [`init`].
pub fn init_with(
    filter: &str,
    format: LogFormat,
    bridge: Option<Bridge>,
) -> Result<LogHandle, LogError> {
    let bridged = bridge.is_some();
    let (filter, handle) = reload::Layer::new(with_spans(parse(filter)?, bridged));
    let registry = tracing_subscriber::registry().with(bridge).with(filter);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    }
    .map_err(|_| LogError::Installed)?;
    Ok(LogHandle { filter: handle, bridged })
}

/// A filter that lets spans be made only where they are taken.
fn with_spans(filter: Targets, bridged: bool) -> Targets {
    filter.with_target(SPANS, if bridged { LevelFilter::INFO } else { LevelFilter::OFF })
}

/// Levels by target. Deliberately no more: matching on span fields needs a regex engine, which
/// would be a tenth of the proxy.
fn parse(filter: &str) -> Result<Targets, LogError> {
    Targets::from_str(filter)
        .map_err(|e| LogError::Filter { filter: filter.to_owned(), problem: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_and_levels_by_target() {
        for good in ["info", "warn,remora_proxy=debug", "off", "remora_proxy::tls=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let error = parse("info,remora_proxy=loud").unwrap_err().to_string();
        assert!(error.contains("remora_proxy=loud"), "{error}");
    }

    #[test]
    fn spans_are_made_where_they_are_taken_whatever_the_log_shows() {
        for (filter, bridged) in [("trace", false), ("off", true)] {
            let filter = with_spans(parse(filter).unwrap(), bridged);
            assert_eq!(filter.would_enable(SPANS, &tracing::Level::INFO), bridged);
        }
    }

    #[test]
    fn the_filter_in_force_is_shown_as_it_was_given() {
        let (_layer, filter) = reload::Layer::new(with_spans(parse("info").unwrap(), true));
        let handle = LogHandle { filter, bridged: true };
        handle.set("warn,remora_proxy=debug").unwrap();
        assert_eq!(parse(&handle.current()).unwrap(), parse("warn,remora_proxy=debug").unwrap());
        assert!(!handle.current().contains(SPANS));
        let spans = |filter: &Targets| filter.would_enable(SPANS, &tracing::Level::INFO);
        assert!(handle.filter.with_current(spans).unwrap());
    }
}
