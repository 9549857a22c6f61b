//! A Service as people name it on the command line.

use std::str::FromStr;

/// Which Services are meant: by name, and by namespace and port where those are said.
///
/// `orders`, `orders:80`, `shop/orders`, `orders.shop`, `orders.shop.svc.cluster.local:80`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    namespace: Option<String>,
    name: String,
    port: Option<u16>,
}

impl Wish {
    /// Whether it means this one.
    pub(crate) fn means(&self, namespace: &str, name: &str, port: u16) -> bool {
        self.name == name
            && self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.port.is_none_or(|wanted| wanted == port)
    }

    /// What proxies filter by, `namespace/name` or `namespace/name:port`; `None` where the namespace
    /// was not said.
    pub(crate) fn filter(&self) -> Option<String> {
        let port = self.port.map_or_else(String::new, |port| format!(":{port}"));
        Some(format!("{}/{}{port}", self.namespace.as_ref()?, self.name))
    }

    /// Whether it means `namespace/name:port`.
    pub(crate) fn means_id(&self, id: &str) -> bool {
        let parts = id.split_once('/').and_then(|(namespace, rest)| {
            let (name, port) = rest.rsplit_once(':')?;
            Some((namespace, name, port.parse().ok()?))
        });
        parts.is_some_and(|(namespace, name, port)| self.means(namespace, name, port))
    }
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = match text.rsplit_once(':') {
            None => (text, None),
            Some((host, port)) => {
                let number = port.parse().map_err(|_| format!("{port:?} is no port"))?;
                (host, Some(number))
            }
        };
        let (namespace, name) = match (host.split_once('/'), host.split_once('.')) {
            (Some((namespace, name)), _) => (Some(namespace), name),
            (None, Some((name, domain))) => (domain.split('.').next(), name),
            (None, None) => (None, host),
        };
        let fits = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !fits(name) || !namespace.is_none_or(fits) {
            return Err(format!(
                "{text:?} names no Service; use orders, shop/orders or orders.shop:80"
            ));
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(text: &str) -> Wish {
        text.parse().unwrap()
    }

    #[test]
    fn a_service_is_named_as_people_and_kubernetes_do() {
        for text in ["orders", "shop/orders", "orders.shop", "orders.shop.svc.cluster.local:80"] {
            assert!(wish(text).means("shop", "orders", 80), "{text}");
            assert!(wish(text).means_id("shop/orders:80"), "{text}");
            assert!(!wish(text).means("shop", "order", 80), "{text}");
            assert_eq!(wish(text).means("other", "orders", 80), text == "orders", "{text}");
        }
        assert!(!wish("orders:80").means("shop", "orders", 81));
        assert_eq!(wish("shop/orders:80").filter().as_deref(), Some("shop/orders:80"));
        assert_eq!(wish("orders.shop").filter().as_deref(), Some("shop/orders"));
        assert_eq!(wish("orders:80").filter(), None);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "a:b", "a/b/c", "Orders", "a/", "../x"] {
            assert!(text.parse::<Wish>().is_err(), "{text:?}");
        }
    }
}
