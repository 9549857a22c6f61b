//! One line: the fields of a request by their OpenTelemetry names, as JSON or as `key=value`.

use std::{fmt, io::Write as _, time::Duration};

use remora_core::telemetry::LogFormat;

use crate::{
    metrics::Direction,
    sight::{
        finished::Finished,
        id::DecisionId,
        record::cut,
        semantic::{self, Host},
    },
};

/// Bytes that most lines have room in.
const USUAL: usize = 640;

/// What a line is made of.
pub(super) struct Line<'a> {
    pub(super) at: Duration,
    pub(super) id: Option<DecisionId>,
    pub(super) finished: &'a Finished<'a>,
}

impl Line<'_> {
    /// The line with its end.
    pub(super) fn text(&self, format: LogFormat) -> Vec<u8> {
        let mut line = Writer { out: Vec::with_capacity(USUAL), format };
        if format == LogFormat::Json {
            line.out.push(b'{');
        }
        self.fields(&mut line);
        if format == LogFormat::Json {
            line.out.push(b'}');
        }
        line.out.push(b'\n');
        line.out
    }

    fn fields(&self, line: &mut Writer) {
        let Finished { about, story, ended, .. } = self.finished;
        line.bare("timestamp", &Timestamp(self.at));
        line.word("remora.direction", self.finished.direction.as_str());
        if let Some(about) = about {
            line.text("http.request.method", about.method.as_str());
            line.text("url.path", cut(about.path));
            if let Some(status) = self.finished.status() {
                line.number("http.response.status_code", status.as_u16());
            }
        }
        if let Some(code) = self.finished.grpc_status() {
            line.word("rpc.response.status_code", semantic::grpc_code(code));
        }
        if let Some(kind) = self.finished.error_type() {
            line.text("error.type", &kind);
        }
        let took = ended.saturating_duration_since(story.started);
        line.number("duration", format_args!("{:.6}", took.as_secs_f64()));
        if let Some(Host { name, port }) = self.finished.host().and_then(Host::of) {
            line.text("server.address", cut(name));
            if let Some(port) = port {
                line.number("server.port", port);
            }
        }
        if let Some(client) = self.finished.client {
            line.bare("client.address", &client);
        }
        match about {
            Some(about) => {
                line.word("network.protocol.name", "http");
                line.word("network.protocol.version", semantic::version(about.protocol));
            }
            None => line.word("network.transport", "tcp"),
        }
        self.ours(line);
        if let Some(context) = story.trace {
            line.bare("trace_id", &context.trace);
        }
    }

    /// What there are no standard names for.
    fn ours(&self, line: &mut Writer) {
        let Finished { story, target, service, route, peer, direction, .. } = self.finished;
        line.display("remora.target", *target);
        if let Some(service) = service {
            line.display("remora.service", *service);
        }
        if let Some((route, _)) = route {
            line.text("remora.route", route);
        }
        let (mut count, mut last) = (story.untold, None);
        for attempt in story.attempts() {
            count += 1;
            last = Some(attempt);
        }
        if *direction == Direction::Outbound {
            line.number("remora.attempts", count);
        }
        if let Some(last) = last {
            line.bare("network.peer.address", &last.endpoint.addr.ip());
            line.number("network.peer.port", last.endpoint.addr.port());
        }
        let served_by = last.and_then(|last| last.endpoint.identity.as_ref());
        if let Some(peer) = peer.or(served_by) {
            line.text("remora.peer", peer.as_str());
        }
        if let Some(carried) = self.finished.carried {
            line.number("remora.sent_bytes", carried.sent);
            line.number("remora.received_bytes", carried.received);
        }
        if self.finished.client_left() {
            line.number("remora.client_left", true);
        }
        if let Some(id) = self.id {
            line.bare("remora.decision.id", &id);
        }
    }
}

struct Writer {
    out: Vec<u8>,
    format: LogFormat,
}

impl Writer {
    /// A number, as its Display writes it.
    fn number(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        self.print(format_args!("{value}"));
    }

    /// What has no character that would need care.
    fn bare(&mut self, key: &str, value: &dyn fmt::Display) {
        self.key(key);
        match self.format {
            LogFormat::Json => self.print(format_args!("\"{value}\"")),
            LogFormat::Text => self.print(format_args!("{value}")),
        }
    }

    /// One of ours.
    fn word(&mut self, key: &str, value: &str) {
        self.bare(key, &value);
    }

    /// Somebody else's.
    fn text(&mut self, key: &str, value: &str) {
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'=');
        if value.bytes().all(plain) && !(self.format == LogFormat::Text && value.is_empty()) {
            return self.word(key, value);
        }
        self.key(key);
        // Quoted alike in both: no line can be made to look like two.
        if let Ok(quoted) = serde_json::to_vec(value) {
            self.out.extend_from_slice(&quoted);
        }
    }

    fn display(&mut self, key: &str, value: &dyn fmt::Display) {
        self.text(key, &value.to_string());
    }

    fn key(&mut self, key: &str) {
        match self.format {
            LogFormat::Json => {
                let comma = if self.out.len() > 1 { "," } else { "" };
                self.print(format_args!("{comma}\"{key}\":"));
            }
            LogFormat::Text => {
                let space = if self.out.is_empty() { "" } else { " " };
                self.print(format_args!("{space}{key}="));
            }
        }
    }

    fn print(&mut self, text: fmt::Arguments<'_>) {
        // Memory takes everything.
        let _ = self.out.write_fmt(text);
    }
}

/// A time since 1970 as RFC 3339 writes it, in UTC with microseconds.
struct Timestamp(Duration);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        let micros = self.0.subsec_micros();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Year, month and day that come so many days after 1970-01-01 (Hinnant, "chrono-compatible low-level
/// date algorithms", `civil_from_days`).
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // Years that begin in March have their leap day at the end.
    let days = days + 719_468;
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_says() {
        let written = |seconds, micros| {
            Timestamp(Duration::from_secs(seconds) + Duration::from_micros(micros)).to_string()
        };
        assert_eq!(written(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(written(951_782_400, 7), "2000-02-29T00:00:00.000007Z");
        assert_eq!(written(1_767_225_599, 999_999), "2025-12-31T23:59:59.999999Z");
        assert_eq!(written(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn nothing_in_a_value_makes_it_look_like_two() {
        let line = |format, value| {
            let mut line = Writer { out: Vec::new(), format };
            line.text("url.path", value);
            String::from_utf8(line.out).unwrap()
        };
        for (value, json, text) in [
            ("/a/b", r#""url.path":"/a/b""#, "url.path=/a/b"),
            ("/a b", r#""url.path":"/a b""#, r#"url.path="/a b""#),
            ("/a=\"b\n", r#""url.path":"/a=\"b\n""#, r#"url.path="/a=\"b\n""#),
            ("/é", r#""url.path":"/é""#, r#"url.path="/é""#),
            ("", r#""url.path":"""#, r#"url.path="""#),
        ] {
            assert_eq!(line(LogFormat::Json, value), json);
            assert_eq!(line(LogFormat::Text, value), text);
        }
    }
}
