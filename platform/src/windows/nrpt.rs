//! DNS: the servers of our adapter, and a rule for every name in the Name Resolution Policy Table ([MS-GPNRPT] §2.2.2), so
//! that no other adapter's servers are asked beside them. The rule is a volatile registry key: like everything else of
//! ours but files, it ends with the system.

use std::mem::transmute;
use std::net::IpAddr;
use std::ptr::null;

use windows_sys::Win32::Foundation::{ERROR_FILE_NOT_FOUND, ERROR_NOT_FOUND};
use windows_sys::Win32::NetworkManagement::IpHelper::{
    DNS_INTERFACE_SETTINGS, DNS_INTERFACE_SETTINGS_VERSION1, DNS_SETTING_IPV6, DNS_SETTING_NAMESERVER,
};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
use windows_sys::Win32::System::Registry::*;
use windows_sys::Win32::System::Services::{
    CloseServiceHandle, ControlService, OpenSCManagerW, OpenServiceW, SC_MANAGER_CONNECT, SERVICE_CONTROL_PARAMCHANGE,
    SERVICE_PAUSE_CONTINUE, SERVICE_STATUS,
};
use windows_sys::core::GUID;

use super::interface::{self, check};
use super::registry::{bytes, create, open};
use super::text::{guid_text, wide};
use super::wireguard::guid;
use crate::types::Family;
use crate::{Error, OUR_ALIAS, Result};

/// Where local rules are, a key each.
const RULES: &str = r"SYSTEM\CurrentControlSet\Services\Dnscache\Parameters\DnsPolicyConfig";
/// Where those of a group policy are: if there are any, the local ones do not count.
const POLICY: &str = r"SOFTWARE\Policies\Microsoft\Windows NT\DNSClient\DnsPolicyConfig";
/// `ConfigOptions`: the rule names servers; [MS-GPNRPT] §2.2.2.13.
const NAMES_SERVERS: u32 = 8;
/// `Version` of a rule with these values, as Add-DnsClientNrptRule writes it.
const VERSION: u32 = 2;

/// `{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}`, the name of a node's rule.
fn rule_name(interface: &str) -> String {
    format!("{{{}}}", guid_text(&guid(interface)))
}

/// A list as rules have it.
fn list(servers: &[IpAddr], separator: &str) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

type SetInterfaceDnsSettings = unsafe extern "system" fn(GUID, *const DNS_INTERFACE_SETTINGS) -> u32;

/// Looked for, not linked: where it is missing not even `--help` would start.
fn setter() -> Option<SetInterfaceDnsSettings> {
    // SAFETY: the names end with zero; the library is linked, so it stays.
    let found = unsafe {
        GetProcAddress(GetModuleHandleW(wide("iphlpapi.dll").as_ptr()), c"SetInterfaceDnsSettings".as_ptr().cast())
    };
    // SAFETY: the function has the type that netioapi.h gives it.
    found.map(|found| unsafe { transmute::<unsafe extern "system" fn() -> isize, SetInterfaceDnsSettings>(found) })
}

/// Whether this Windows can be told our servers; asked before DNS is changed.
pub(super) fn supported() -> Result<()> {
    setter().map(drop).ok_or(Error::Unsupported {
        what: "changing DNS before version 2004 of Windows 10",
        instead: "leave DNS as it is with --dns none, or update Windows",
    })
}

/// Sends every name's queries to these servers.
pub(super) fn set(interface: &str, servers: &[IpAddr]) -> Result<()> {
    supported()?;
    set_adapter(interface, servers)?;
    set_rule(RULES, interface, servers)?;
    if let Some(policy) = open(HKEY_LOCAL_MACHINE, POLICY, KEY_READ)?
        && !policy.names()?.is_empty()
    {
        tracing::warn!(
            "a group policy has name resolution rules, beside which ours does not count: names may not resolve"
        );
    }
    Ok(())
}

/// Puts our rule among these.
fn set_rule(rules: &str, interface: &str, servers: &[IpAddr]) -> Result<()> {
    // the rules of other programs live below it for good, so it must not be volatile, whoever makes it first
    let (rules, _) = create(HKEY_LOCAL_MACHINE, rules, REG_OPTION_NON_VOLATILE)?;
    let name = rule_name(interface);
    rules.delete(&name)?;
    let (rule, _) = create(rules.0, &name, REG_OPTION_VOLATILE)?;
    // the mark first: what is left by a kill is known as ours
    rule.set_text("Comment", OUR_ALIAS)?;
    rule.set_text("DisplayName", &format!("PeerVPN {interface}"))?;
    rule.set_text("IPSECCARestriction", "")?;
    rule.set_text("GenericDNSServers", &list(servers, ";"))?;
    rule.set_number("ConfigOptions", NAMES_SERVERS)?;
    rule.set_number("Version", VERSION)?;
    // every name; a list of texts ends with an empty one
    rule.set("Name", REG_MULTI_SZ, &bytes(&[wide("."), vec![0]].concat()))?;
    reload();
    Ok(())
}

/// The servers that our rule names; none if there is no rule of ours.
pub(super) fn servers(interface: &str) -> Result<Vec<IpAddr>> {
    servers_among(RULES, interface)
}

fn servers_among(rules: &str, interface: &str) -> Result<Vec<IpAddr>> {
    let path = format!(r"{rules}\{}", rule_name(interface));
    let Some(rule) = open(HKEY_LOCAL_MACHINE, &path, KEY_READ)? else { return Ok(Vec::new()) };
    let text = rule.text("GenericDNSServers").unwrap_or_default();
    Ok(text.split(';').filter_map(|server| server.parse().ok()).collect())
}

/// Takes the rule back, and the adapter's servers if it is there still.
pub(super) fn remove(interface: &str) -> Result<()> {
    remove_rules(RULES, |name, _| name.eq_ignore_ascii_case(&rule_name(interface)))?;
    set_adapter(interface, &[])
}

/// Takes back every rule of ours, of whichever node.
pub(super) fn remove_all() -> Result<()> {
    remove_rules(RULES, |_, comment| comment == OUR_ALIAS)
}

fn remove_rules(rules: &str, which: impl Fn(&str, &str) -> bool) -> Result<()> {
    let Some(rules) = open(HKEY_LOCAL_MACHINE, rules, KEY_ALL_ACCESS)? else { return Ok(()) };
    let mut any = false;
    for name in rules.names()? {
        let comment = open(rules.0, &name, KEY_READ)?.and_then(|rule| rule.text("Comment")).unwrap_or_default();
        if which(&name, &comment) {
            rules.delete(&name)?;
            any = true;
        }
    }
    if any {
        reload();
    }
    Ok(())
}

/// The servers of our adapter; none there, no error: its settings are asked for only while it is up.
fn set_adapter(interface: &str, servers: &[IpAddr]) -> Result<()> {
    let Some(entry) = interface::find(interface)?.filter(|entry| entry.link.alias.is_some()) else { return Ok(()) };
    let Some(set) = setter() else { return Ok(()) };
    for family in Family::BOTH {
        let of_family: Vec<IpAddr> = servers.iter().copied().filter(|server| Family::of(server) == family).collect();
        let mut text = wide(list(&of_family, ","));
        let v6 = if family == Family::V6 { DNS_SETTING_IPV6 } else { 0 };
        let settings = DNS_INTERFACE_SETTINGS {
            Version: DNS_INTERFACE_SETTINGS_VERSION1,
            Flags: u64::from(DNS_SETTING_NAMESERVER | v6),
            NameServer: text.as_mut_ptr(),
            ..Default::default()
        };
        // SAFETY: the settings and their text live through the call.
        match unsafe { set(entry.guid, &raw const settings) } {
            ERROR_FILE_NOT_FOUND | ERROR_NOT_FOUND if servers.is_empty() => {}
            answer => check(|| format!("set the DNS servers of {interface}"), answer)?,
        }
    }
    Ok(())
}

/// Tells the DNS client service, which otherwise looks at its rules when something else changes. A failure leaves it at
/// that: the filters let no query out beside the tunnel meanwhile.
fn reload() {
    let name = wide("Dnscache");
    // SAFETY: no machine and no database mean this one and the active one; handles are checked, and closed once.
    unsafe {
        let manager = OpenSCManagerW(null(), null(), SC_MANAGER_CONNECT);
        if manager.is_null() {
            tracing::warn!("the DNS client service cannot be told of the new rule");
            return;
        }
        let service = OpenServiceW(manager, name.as_ptr(), SERVICE_PAUSE_CONTINUE);
        let mut status = SERVICE_STATUS::default();
        if service.is_null() || ControlService(service, SERVICE_CONTROL_PARAMCHANGE, &raw mut status) == 0 {
            tracing::warn!(error = %std::io::Error::last_os_error(), "the DNS client service was not told of the rule");
        }
        if !service.is_null() {
            CloseServiceHandle(service);
        }
        CloseServiceHandle(manager);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_ours_are_set_read_and_removed_and_others_stay() {
        // not where anybody looks for rules
        let software = open(HKEY_LOCAL_MACHINE, "SOFTWARE", KEY_ALL_ACCESS).unwrap().unwrap();
        let name = format!("PeerVPN test {}", std::process::id());
        let rules = format!(r"SOFTWARE\{name}");
        let servers = |interface| servers_among(&rules, interface).unwrap();
        let (one, two): ([IpAddr; 2], [IpAddr; 1]) =
            (["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()], ["10.77.0.2".parse().unwrap()]);
        set_rule(&rules, "peervpn0", &two).unwrap();
        set_rule(&rules, "peervpn0", &one).unwrap();
        set_rule(&rules, "peervpn1", &two).unwrap();
        let (other, _) = create(software.0, &format!(r"{name}\other"), REG_OPTION_NON_VOLATILE).unwrap();
        other.set_text("Comment", "someone else's").unwrap();
        assert_eq!((servers("peervpn0"), servers("peervpn1")), (one.to_vec(), two.to_vec()));
        remove_rules(&rules, |name, _| name == rule_name("peervpn1")).unwrap();
        assert_eq!((servers("peervpn0"), servers("peervpn1")), (one.to_vec(), Vec::new()));
        remove_rules(&rules, |_, comment| comment == OUR_ALIAS).unwrap();
        let left = open(HKEY_LOCAL_MACHINE, &rules, KEY_READ).unwrap().unwrap().names().unwrap();
        software.delete(&name).unwrap();
        assert_eq!(left, ["other"]);
    }
}
