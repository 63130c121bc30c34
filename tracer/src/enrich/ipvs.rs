//! Virtual services of IPVS (Kubernetes' kube-proxy, keepalived), which refuse packets that no server is there for.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use crate::model::{Protocol, Tuple};

/// A service in `net/ip_vs` (`ip_vs_info_seq_show`, net/netfilter/ipvs/ip_vs_ctl.c, 6.12), of an address; those of a firewall
/// mark are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpvsService {
    pub protocol: Protocol,
    pub address: IpAddr,
    /// 0 is any.
    pub port: u16,
    /// Real servers behind it.
    pub servers: usize,
}

impl IpvsService {
    /// Those of the calling thread's namespace; `None` where they cannot be read.
    pub(super) fn read(proc: &Path) -> Option<Vec<Self>> {
        match fs::read_to_string(proc.join("thread-self/net/ip_vs")) {
            Ok(text) => Self::all(&text),
            // The module that keeps services also makes the list of them.
            Err(error) if error.kind() == ErrorKind::NotFound => Some(Vec::new()),
            Err(_) => None,
        }
    }

    fn all(text: &str) -> Option<Vec<Self>> {
        let mut services = Vec::new();
        let mut ours = false;
        // Version, and the names of the columns of services and servers.
        for line in text.lines().skip(3) {
            if line.starts_with("  -> ") {
                if let Some(service) = services.last_mut().filter(|_| ours) {
                    let service: &mut Self = service;
                    service.servers += 1;
                }
                continue;
            }
            ours = !line.starts_with("FWM ");
            if ours {
                services.push(Self::of(line)?);
            }
        }
        Some(services)
    }

    /// `TCP  0A010001:1F98 rr`, `UDP  [fd01:0000:...:0001]:0050 rr`
    fn of(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let protocol = match words.next()? {
            "TCP" => Protocol::TCP,
            "UDP" => Protocol::UDP,
            "SCTP" => Protocol::SCTP,
            _ => return None,
        };
        let (address, port) = words.next()?.rsplit_once(':')?;
        let address = match address.strip_prefix('[') {
            Some(v6) => IpAddr::V6(v6.strip_suffix(']')?.parse().ok()?),
            None => IpAddr::V4(Ipv4Addr::from_bits(u32::from_str_radix(address, 16).ok()?)),
        };
        Some(Self { protocol, address, port: u16::from_str_radix(port, 16).ok()?, servers: 0 })
    }

    /// Whether packets to there are this service's.
    #[must_use]
    pub fn takes(&self, protocol: Protocol, packet: &Tuple) -> bool {
        self.protocol == protocol
            && self.address == packet.destination
            && (self.port == 0 || packet.destination_port == Some(self.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A010001:0050 rr  
  -> 0A020002:1F90      Masq    1      0          1         
TCP  0A010001:1F98 rr  
UDP  [fd01:0000:0000:0000:0000:0000:0000:0001]:0050 rr 
  -> [fd02:0000:0000:0000:0000:0000:0000:0002]:1F90      Masq    1      0          0         
FWM  00000007 rr 
  -> 0A020002:0000      Route   1      0          0         
";

    #[test]
    fn services_have_servers_or_none() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(IpvsService::read(proc.path()), Some(Vec::new()), "ip_vs is not loaded");
        let dir = proc.path().join("thread-self/net");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("ip_vs"), LIST).unwrap();
        let service = |protocol, address: &str, port, servers| IpvsService {
            protocol,
            address: address.parse().unwrap(),
            port,
            servers,
        };
        let all = IpvsService::read(proc.path()).unwrap();
        let wanted = [
            service(Protocol::TCP, "10.1.0.1", 80, 1),
            service(Protocol::TCP, "10.1.0.1", 8088, 0),
            service(Protocol::UDP, "fd01::1", 80, 1),
        ];
        assert_eq!(all, wanted);
        // What has another form is not known, not empty.
        fs::write(dir.join("ip_vs"), format!("{LIST}ABC 1\n")).unwrap();
        assert_eq!(IpvsService::read(proc.path()), None);
    }

    #[test]
    fn a_service_takes_what_is_for_its_address() {
        let any = IpvsService::of("TCP  0A010001:0000 rr persistent 300 FFFFFFFF").unwrap();
        let one = IpvsService { port: 80, ..any };
        let packet = |port| Tuple {
            source: "10.1.0.2".parse().unwrap(),
            source_port: Some(4000),
            destination: "10.1.0.1".parse().unwrap(),
            destination_port: Some(port),
        };
        assert!(any.takes(Protocol::TCP, &packet(81)) && one.takes(Protocol::TCP, &packet(80)));
        assert!(!one.takes(Protocol::TCP, &packet(81)) && !one.takes(Protocol::UDP, &packet(80)));
    }
}
