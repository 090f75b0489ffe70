//! Step 6: Landlock. Every file right, TCP bind and both scopes are handled; front, vault and unseal get no rule at all,
//! `noded` and the directory one rule for each kept path. It must report `FullyEnforced`, and a probe must be refused.

use std::fs;
use std::io::ErrorKind;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::confine::{Cage, KeptPath};
use crate::error::{Error, Result};
use crate::layer::{Layer, LayerName};

/// The ABI whose rights are handled. Newer ones (7) add rights to log, none to refuse.
const HANDLED: ABI = ABI::V6;

pub(crate) fn restrict(cage: &Cage) -> Result<Layer> {
    if fs::read_dir("/").is_err() {
        // The control of the probe below: without Landlock the same act succeeds.
        return Err(Error::LocalProbe { layer: LayerName::Landlock });
    }
    let status = ruleset(cage)
        .and_then(RulesetCreated::restrict_self)
        .map_err(|source| Error::LocalLandlock { source: Box::new(source) })?;
    let full = status.ruleset == RulesetStatus::FullyEnforced && status.no_new_privs;
    match fs::read_dir("/") {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        _ => return Err(Error::LocalProbe { layer: LayerName::Landlock }),
    }
    let rules = cage.kept.len();
    Ok(Layer::new(LayerName::Landlock, "fully enforced", if full { "fully enforced" } else { "not fully enforced" })
        .detail(format!("{rules} path rules, scopes: signals and abstract sockets; reading / is refused")))
}

fn ruleset(cage: &Cage) -> std::result::Result<RulesetCreated, RulesetError> {
    // TCP is open for outgoing connections only in roles that keep the network and have no list of ports.
    let any_port = cage.role.keeps_network() && cage.connect.is_none();
    let network: BitFlags<AccessNet> = if any_port { AccessNet::BindTcp.into() } else { AccessNet::from_all(HANDLED) };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(HANDLED))?
        .handle_access(network)?
        .scope(Scope::from_all(HANDLED))?
        .create()?;
    for kept in &cage.kept {
        let directory = fs::metadata(kept.inside()).is_ok_and(|found| found.is_dir());
        let rights = rights(kept, directory);
        // A kept path that cannot be opened any more is left without a rule: refused, not opened.
        if let Ok(path) = PathFd::new(kept.inside()) {
            rules = rules.add_rule(PathBeneath::new(path, rights))?;
        }
    }
    for port in cage.connect.iter().flatten() {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    Ok(rules)
}

/// Never execute what may be written, never a device, socket or FIFO; no `ioctl` on devices.
fn rights(kept: &KeptPath, directory: bool) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let rights = match (kept.writable, kept.executable) {
        (true, _) => read | write,
        (false, true) => read | AccessFs::Execute,
        (false, false) => read,
    };
    if directory { rights } else { rights & AccessFs::from_file(HANDLED) }
}
