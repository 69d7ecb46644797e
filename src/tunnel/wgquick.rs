//! Configurations in the form of wg-quick(8), which the official apps take too.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use zeroize::Zeroizing;

use super::KEEPALIVE;
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// What goes into a file.
#[derive(Clone)]
pub struct Config {
    /// Our key.
    pub key: PrivateKey,
    /// Our tunnel addresses.
    pub addresses: Vec<IpAddr>,
    /// DNS servers.
    pub dns: Vec<IpAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Listen port, where it matters.
    pub listen_port: Option<u16>,
    /// The other side, or sides.
    pub peers: Vec<Peer>,
}

/// One `[Peer]`.
#[derive(Clone)]
pub struct Peer {
    /// Its key.
    pub public_key: PublicKey,
    /// Shared with it.
    pub preshared_key: Option<PresharedKey>,
    /// What is sent to it and taken from it.
    pub allowed_ips: Vec<IpNetwork>,
    /// Where it is: one endpoint, wg-quick knows no second.
    pub endpoint: Option<String>,
}

impl Config {
    /// The file; wiped when dropped. Without `show_keys` the secret keys are left out, and it is good for reading only.
    pub fn render(&self, show_keys: bool) -> Zeroizing<String> {
        // room for all at once: a growing buffer would leave copies of the secrets behind
        let mut text = Zeroizing::new(String::with_capacity(1024 + 1024 * self.peers.len()));
        let secret = |name: &str, key: Zeroizing<String>| match show_keys {
            true => Zeroizing::new(format!("{name} = {}\n", *key)),
            false => Zeroizing::new(format!("# {name} is left out; --show-keys shows it\n")),
        };
        text.push_str("[Interface]\n");
        text.push_str(&secret("PrivateKey", self.key.to_base64()));
        text.push_str(&format!("Address = {}\n", list(self.addresses.iter().map(|a| IpNetwork::from(*a)))));
        if !self.dns.is_empty() {
            text.push_str(&format!("DNS = {}\n", list(&self.dns)));
        }
        text.push_str(&format!("MTU = {}\n", self.mtu));
        if let Some(port) = self.listen_port {
            text.push_str(&format!("ListenPort = {port}\n"));
        }
        for peer in &self.peers {
            text.push_str(&format!("\n[Peer]\nPublicKey = {}\n", peer.public_key));
            if let Some(key) = &peer.preshared_key {
                text.push_str(&secret("PresharedKey", key.to_base64()));
            }
            text.push_str(&format!("AllowedIPs = {}\n", list(&peer.allowed_ips)));
            if let Some(endpoint) = &peer.endpoint {
                text.push_str(&format!("Endpoint = {endpoint}\n"));
            }
            text.push_str(&format!("PersistentKeepalive = {KEEPALIVE}\n"));
        }
        text
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            key: PrivateKey::from_bytes([7; 32]),
            addresses: vec!["10.3.93.123".parse().unwrap(), "fdd9:205e:e6c4::7".parse().unwrap()],
            dns: vec!["10.9.8.7".parse().unwrap()],
            mtu: 1420,
            listen_port: None,
            peers: vec![Peer {
                public_key: PublicKey([1; 32]),
                preshared_key: Some(PresharedKey::from_bytes([9; 32])),
                allowed_ips: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
                endpoint: Some("[2001:db8::20]:51820".to_owned()),
            }],
        }
    }

    #[test]
    fn the_file_is_complete() {
        assert_eq!(
            *config().render(true),
            "[Interface]\n\
             PrivateKey = BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n\
             Address = 10.3.93.123/32, fdd9:205e:e6c4::7/128\n\
             DNS = 10.9.8.7\n\
             MTU = 1420\n\
             \n\
             [Peer]\n\
             PublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n\
             PresharedKey = CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n\
             AllowedIPs = 0.0.0.0/0, ::/0\n\
             Endpoint = [2001:db8::20]:51820\n\
             PersistentKeepalive = 25\n"
        );
    }

    #[test]
    fn secrets_stay_out_unless_wanted() {
        let text = config().render(false);
        assert!(!text.contains("BwcHBw") && !text.contains("CQkJCQ"), "{}", *text);
        assert!(text.contains("# PrivateKey is left out") && text.contains("# PresharedKey is left out"));
        let server = Config { listen_port: Some(51820), dns: vec![], ..config() };
        assert!(server.render(true).contains("\nListenPort = 51820\n") && !server.render(true).contains("DNS"));
    }
}
