//! Log set-up: one subscriber per process whose filter can change while it runs.

use std::{io::IsTerminal, str::FromStr};

use tracing_subscriber::{
    Registry, filter::Targets, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
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
#[derive(Debug, Clone)]
pub struct LogHandle(reload::Handle<Targets, Registry>);

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

impl LogHandle {
    /// Puts a new filter in force.
    ///
    /// # Errors
    /// Where it cannot be parsed; the old one then stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.0.reload(parse(filter)?).map_err(|_| LogError::Installed)
    }

    /// The filter in force.
    #[must_use]
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Installs the process's subscriber, writing to standard error.
///
/// # Errors
/// Where the filter cannot be parsed or a subscriber is there already.
pub fn init(filter: &str, format: LogFormat) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    }
    .map_err(|_| LogError::Installed)?;
    Ok(LogHandle(handle))
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
}
