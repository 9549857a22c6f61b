//! Keeps a client at the endpoint that it had: by a cookie, or by its address.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, header};
use parking_lot::Mutex;

use super::token::Token;
use crate::fields::Fields;

/// Clients of one Service that are remembered at a time.
const MAX_CLIENTS: usize = 10_000;
/// Expired sessions that are dropped for each one that is made.
const REAPED: usize = 2;

/// Which endpoint each client of a Service had, by the client's address, as `sessionAffinity:
/// ClientIP` wants it. Shared by all workers; one short lock for each call.
///
/// A session lives until it was not used for its time-out. At most 10,000 are kept: one more, and
/// the one that was used longest ago goes. Names are kept and no positions, so that endpoints that
/// come or go disturb no session but those of the ones that go.
#[derive(Debug, Default)]
pub struct Clients(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    sessions: BTreeMap<IpAddr, Session>,
    /// Clients in the order of their last use.
    by_use: BTreeMap<u64, IpAddr>,
    uses: u64,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    endpoint: Token,
    used: Instant,
    /// Its place in `by_use`.
    place: u64,
}

impl Clients {
    /// The endpoint that a client had, where it asked within `timeout`; the asking counts as a use.
    #[must_use]
    pub fn find(&self, client: IpAddr, timeout: Duration, now: Instant) -> Option<Token> {
        let client = client.to_canonical();
        let mut table = self.0.lock();
        let session = *table.sessions.get(&client)?;
        if session.expired(timeout, now) {
            table.forget(client);
            return None;
        }
        table.put(client, session.endpoint, now);
        Some(session.endpoint)
    }

    /// Remembers the endpoint that a client got. Two requests of a client without a session, at the
    /// same moment, may get two; the later call stays.
    pub fn keep(&self, client: IpAddr, endpoint: Token, timeout: Duration, now: Instant) {
        let mut table = self.0.lock();
        table.put(client.to_canonical(), endpoint, now);
        table.reap(timeout, now);
    }

    /// Clients that are remembered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().sessions.len()
    }
}

impl Table {
    fn put(&mut self, client: IpAddr, endpoint: Token, now: Instant) {
        let known = self.sessions.get_mut(&client);
        if let Some(session) = known {
            session.endpoint = endpoint;
            // Workers' clocks may have been read in another order.
            session.used = session.used.max(now);
            // Mostly it is the same client again: a sidecar has one.
            if session.place == self.uses {
                return;
            }
            self.by_use.remove(&session.place);
            self.uses += 1;
            session.place = self.uses;
        } else {
            self.uses += 1;
            self.sessions.insert(client, Session { endpoint, used: now, place: self.uses });
        }
        self.by_use.insert(self.uses, client);
    }

    fn forget(&mut self, client: IpAddr) {
        if let Some(session) = self.sessions.remove(&client) {
            self.by_use.remove(&session.place);
        }
    }

    /// Drops what is over the bound, and some of what has expired: more than are made, so that
    /// they do not pile up.
    fn reap(&mut self, timeout: Duration, now: Instant) {
        for _ in 0..REAPED {
            let Some((_, &client)) = self.by_use.first_key_value() else { return };
            let expired = self.sessions.get(&client).is_none_or(|s| s.expired(timeout, now));
            if !expired && self.sessions.len() <= MAX_CLIENTS {
                return;
            }
            self.forget(client);
        }
    }
}

impl Session {
    fn expired(&self, timeout: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.used) >= timeout
    }
}

/// The value of a cookie that a client sends (RFC 6265 §4.2); HTTP/2 may spread cookies over several
/// fields (RFC 9113 §8.2.3). Of several of the same name the first.
#[must_use]
pub fn cookie<'a>(fields: &'a impl Fields, name: &str) -> Option<&'a [u8]> {
    let pairs = fields.all(&header::COOKIE).flat_map(|field| field.split(|b| *b == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
        pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::trim_ascii)
    })
}

/// The endpoint that a client's cookie names.
#[must_use]
pub fn named(fields: &impl Fields, name: &str) -> Option<Token> {
    std::str::from_utf8(cookie(fields, name)?).ok()?.parse().ok()
}

/// The endpoint that a field of a client's names, by which it was told of it before.
#[must_use]
pub fn in_field(fields: &impl Fields, name: &HeaderName) -> Option<Token> {
    std::str::from_utf8(fields.get(name)?).ok()?.parse().ok()
}

/// `Set-Cookie` that keeps a client at an endpoint, for as long as given or else until its session
/// ends (RFC 6265 §4.1). Scripts do not see it. `None` where the name is no token, which the policy
/// does not let pass.
#[must_use]
pub fn set_cookie(name: &str, endpoint: Token, timeout: Option<Duration>) -> Option<HeaderValue> {
    let age = timeout.map(|t| format!("; Max-Age={}", t.as_secs())).unwrap_or_default();
    format!("{name}={endpoint}; Path=/; HttpOnly; SameSite=Lax{age}").try_into().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;
    use crate::balance::testing::epoch;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn client(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    fn token(n: u16) -> Token {
        Token::of(([10, 0, 0, 1], n).into(), "")
    }

    #[test]
    fn a_client_keeps_its_endpoint_until_it_was_away_for_the_time_out() {
        let (clients, mut now) = (Clients::default(), epoch());
        assert_eq!(clients.find(client(1), TIMEOUT, now), None);
        clients.keep(client(1), token(1), TIMEOUT, now);
        for _ in 0..5 {
            // Each use makes it live on.
            now += 9 * SECOND;
            assert_eq!(clients.find(client(1), TIMEOUT, now), Some(token(1)));
        }
        now += TIMEOUT;
        assert_eq!(clients.find(client(1), TIMEOUT, now), None);
        assert_eq!(clients.count(), 0, "what expired is gone");
    }

    #[test]
    fn a_client_that_got_another_endpoint_stays_there() {
        let (clients, now) = (Clients::default(), epoch());
        clients.keep(client(1), token(1), TIMEOUT, now);
        clients.keep(client(1), token(2), TIMEOUT, now);
        assert_eq!(clients.find(client(1), TIMEOUT, now), Some(token(2)));
        assert_eq!(clients.count(), 1);
    }

    #[test]
    fn one_client_too_many_takes_the_place_of_the_one_used_longest_ago() {
        let (clients, now) = (Clients::default(), epoch());
        let most = u32::try_from(MAX_CLIENTS).unwrap();
        for n in 0..most {
            clients.keep(client(n), token(1), TIMEOUT, now);
        }
        assert!(clients.find(client(0), TIMEOUT, now).is_some());
        clients.keep(client(most), token(1), TIMEOUT, now);
        assert_eq!(clients.count(), MAX_CLIENTS);
        assert!(clients.find(client(0), TIMEOUT, now).is_some(), "used a moment ago");
        assert_eq!(clients.find(client(1), TIMEOUT, now), None);
    }

    #[test]
    fn sessions_that_expired_go_as_others_come() {
        let (clients, now) = (Clients::default(), epoch());
        for n in 0..100 {
            clients.keep(client(n), token(1), TIMEOUT, now);
        }
        for n in 100..150 {
            clients.keep(client(n), token(1), TIMEOUT, now + TIMEOUT);
        }
        assert_eq!(clients.count(), 50);
    }

    #[test]
    fn an_address_is_the_same_client_in_either_family() {
        let (clients, now) = (Clients::default(), epoch());
        clients.keep("10.0.0.9".parse().unwrap(), token(1), TIMEOUT, now);
        assert!(clients.find("::ffff:10.0.0.9".parse().unwrap(), TIMEOUT, now).is_some());
    }

    #[test]
    fn a_clock_read_earlier_by_another_worker_does_not_shorten_a_session() {
        let (clients, now) = (Clients::default(), epoch());
        clients.keep(client(1), token(1), TIMEOUT, now + 5 * SECOND);
        assert!(clients.find(client(1), TIMEOUT, now).is_some());
        assert!(clients.find(client(1), TIMEOUT, now + 14 * SECOND).is_some());
    }

    fn sent(fields: &[&'static str]) -> HeaderMap {
        let field = |text: &&'static str| (header::COOKIE, HeaderValue::from_static(text));
        fields.iter().map(field).collect()
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name_in_any_field() {
        for (fields, value) in [
            (&["a=1; b=2"][..], Some("2")),
            (&["a=1", "b=2"], Some("2")),
            (&["ab=1;b=2"], Some("2")),
            (&[" b = 2 "], None),
            (&["b=2=3; b=4"], Some("2=3")),
            (&["b="], Some("")),
            (&["b", "ab=1"], None),
            (&[], None),
        ] {
            assert_eq!(cookie(&sent(fields), "b"), value.map(str::as_bytes), "{fields:?}");
        }
    }

    #[test]
    fn a_cookie_that_was_set_names_its_endpoint_and_a_foreign_one_none() {
        let set = set_cookie("remora-affinity", token(7), Some(90 * SECOND)).unwrap();
        let set = set.to_str().unwrap();
        let attributes = "; Path=/; HttpOnly; SameSite=Lax; Max-Age=90";
        assert_eq!(set, format!("remora-affinity={}{attributes}", token(7)));
        let back = HeaderValue::from_str(set.split(';').next().unwrap()).unwrap();
        let headers = HeaderMap::from_iter([(header::COOKIE, back)]);
        assert_eq!(named(&headers, "remora-affinity"), Some(token(7)));
        assert_eq!(named(&sent(&["remora-affinity=; x=1"]), "remora-affinity"), None);
        assert!(!set_cookie("a", token(7), None).unwrap().to_str().unwrap().contains("Max-Age"));
    }

    #[test]
    fn a_field_names_its_endpoint_and_nonsense_none() {
        let name = HeaderName::from_static("x-session");
        let sent = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            HeaderMap::from_iter([(name.clone(), value)])
        };
        assert_eq!(in_field(&sent(&token(7).to_string()), &name), Some(token(7)));
        assert_eq!(in_field(&sent("7"), &name), None);
        assert_eq!(in_field(&HeaderMap::new(), &name), None);
    }

    proptest! {
        /// Against a list that is searched from end to end.
        #[test]
        fn the_table_is_a_list_of_the_last_uses(
            steps in prop::collection::vec((any::<bool>(), 0u32..8, 0u16..4, 0u32..6), 1..200),
        ) {
            let (clients, mut now) = (Clients::default(), epoch());
            let mut model: Vec<(u32, u16, Instant)> = Vec::new();
            for (keep, n, endpoint, gap) in steps {
                now += gap * SECOND;
                let alive = |(_, _, used): &(u32, u16, Instant)| now - *used < TIMEOUT;
                model.retain(alive);
                if keep {
                    clients.keep(client(n), token(endpoint), TIMEOUT, now);
                    model.retain(|(known, ..)| *known != n);
                    model.push((n, endpoint, now));
                } else {
                    let wanted = model.iter_mut().find(|(known, ..)| *known == n);
                    let wanted = wanted.map(|session| {
                        session.2 = now;
                        token(session.1)
                    });
                    prop_assert_eq!(clients.find(client(n), TIMEOUT, now), wanted);
                }
                let table = clients.0.lock();
                prop_assert_eq!(table.sessions.len(), table.by_use.len());
                prop_assert!(table.by_use.iter().all(|(place, c)| table.sessions[c].place == *place));
            }
        }
    }
}
