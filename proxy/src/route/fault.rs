//! Failure on purpose.

use std::time::Duration;

use http::StatusCode;

use super::matching::HeaderMatch;
use crate::fields::Fields;

/// Some requests are held up, some are refused.
#[derive(Debug)]
pub struct Fault {
    /// Only requests that have all of these.
    pub headers: Box<[HeaderMatch]>,
    /// How long requests are held up, and which share of them (0 to 1).
    pub delay: Option<(Duration, f64)>,
    /// How requests are refused, and which share of them (0 to 1).
    pub abort: Option<(Abort, f64)>,
}

/// What is answered in the backend's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// To requests of HTTP.
    pub http: StatusCode,
    /// To calls of gRPC.
    pub grpc: u32,
}

/// What is to happen to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fate {
    /// It waits for so long first.
    pub delay: Option<Duration>,
    /// It is refused then.
    pub abort: Option<Abort>,
}

impl Fault {
    /// What is to happen to a request. Delay and refusal are drawn independently.
    pub fn decide(&self, fields: &impl Fields, rng: &mut fastrand::Rng) -> Fate {
        if !self.headers.iter().all(|wanted| wanted.holds(fields)) {
            return Fate::default();
        }
        let mut drawn = |share: f64| rng.f64() < share;
        Fate {
            delay: self.delay.filter(|(_, share)| drawn(*share)).map(|(delay, _)| delay),
            abort: self.abort.filter(|(_, share)| drawn(*share)).map(|(abort, _)| abort),
        }
    }
}

impl Abort {
    /// Where one of them is `None`, the other is what means the same; where both are, there is
    /// nothing to answer.
    #[must_use]
    pub fn new(http: Option<StatusCode>, grpc: Option<u32>) -> Option<Self> {
        match (http, grpc) {
            (Some(http), Some(grpc)) => Some(Self { http, grpc }),
            (Some(http), None) => Some(Self { http, grpc: grpc_of(http) }),
            (None, Some(grpc)) => Some(Self { http: http_of(grpc), grpc }),
            (None, None) => None,
        }
    }
}

/// gRPC's code for an HTTP status (gRPC, "HTTP to gRPC Status Code Mapping").
fn grpc_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The HTTP status for gRPC's code (google.rpc.Code). CANCELLED has none of the standard; its
/// meaning, that the caller went away, cannot be told to one that is there.
fn http_of(code: u32) -> StatusCode {
    match code {
        0 => StatusCode::OK,
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName};

    use super::*;
    use crate::route::{matching::TextMatch, testing::named};

    const DELAY: Duration = Duration::from_millis(70);

    fn fault(delay: f64, abort: f64) -> Fault {
        let refusal = Abort::new(Some(StatusCode::SERVICE_UNAVAILABLE), None).unwrap();
        Fault { headers: [].into(), delay: Some((DELAY, delay)), abort: Some((refusal, abort)) }
    }

    #[test]
    fn all_none_or_a_share_of_requests_are_hit() {
        let mut rng = fastrand::Rng::with_seed(3);
        let none = HeaderMap::new();
        let mut hits = |fault: &Fault| {
            let fates: Vec<_> = (0..2000).map(|_| fault.decide(&none, &mut rng)).collect();
            let count = |hit: fn(&Fate) -> bool| fates.iter().filter(|fate| hit(fate)).count();
            (count(|f| f.delay == Some(DELAY)), count(|f| f.abort.is_some()))
        };
        assert_eq!(hits(&fault(1.0, 0.0)), (2000, 0));
        assert_eq!(hits(&fault(0.0, 1.0)), (0, 2000));
        let (delayed, aborted) = hits(&fault(0.1, 0.5));
        assert!((140..260).contains(&delayed), "{delayed}");
        assert!((900..1100).contains(&aborted), "{aborted}");
    }

    #[test]
    fn only_requests_that_have_the_fields_are_hit() {
        let name = HeaderName::from_static("x-rehearsal");
        let wanted = HeaderMatch { name, value: TextMatch::exact("yes") };
        let fault = Fault { headers: [wanted].into(), ..fault(1.0, 1.0) };
        let mut rng = fastrand::Rng::with_seed(3);
        let mut decide = |value| {
            let fields = HeaderMap::from_iter([named("x-rehearsal", value)]);
            fault.decide(&fields, &mut rng)
        };
        assert_eq!(decide("no"), Fate::default());
        assert!(decide("yes").abort.is_some());
    }

    #[test]
    fn what_is_not_given_is_what_means_the_same() {
        let abort = |http: u16, grpc| {
            let http = (http > 0).then(|| StatusCode::from_u16(http).unwrap());
            Abort::new(http, (grpc > 0).then_some(grpc)).map(|a| (a.http.as_u16(), a.grpc))
        };
        assert_eq!(abort(503, 0), Some((503, 14)));
        assert_eq!(abort(418, 0), Some((418, 2)));
        assert_eq!(abort(0, 8), Some((429, 8)));
        assert_eq!(abort(500, 13), Some((500, 13)));
        assert_eq!(abort(0, 0), None);
    }
}
