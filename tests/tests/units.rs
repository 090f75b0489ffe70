//! The shipped units under a real systemd, as `scripts/install` puts them on a machine: they start, are seen in their cages, are started
//! again when they are killed or hang, and stop. Takes root: an ordinary user has no machine to give to systemd. What an ordinary user
//! starts without one is tested everywhere else.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use anyhow::Result;
use openred_tests::harness::{is_root, wait_for};
use openred_tests::machine::Machine;
use serde_json::Value;

/// How a node's operator asks.
const OPENRED: &str = "openred --json --home /var/lib/openred";

fn machine() -> Machine {
    Machine::boot(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

fn json(machine: &Machine, script: &str) -> Result<Value> {
    Ok(serde_json::from_str(machine.ok(script)?.lines().last().unwrap_or_default())?)
}

/// Pid, restarts and state of one of the node's processes.
fn process(machine: &Machine, name: &str) -> Result<(u64, u64, String)> {
    // Degraded is an exit code of its own, and no failure to answer.
    let status = json(machine, &format!("{OPENRED} status || [ $? -eq 3 ]"))?;
    let processes = status["supervisor"]["processes"].as_array().cloned().unwrap_or_default();
    let found = processes.iter().find(|process| process["name"] == name).cloned().unwrap_or_default();
    let number = |field: &str| found[field].as_u64().unwrap_or_default();
    Ok((number("pid"), number("restarts"), found["state"].as_str().unwrap_or_default().to_owned()))
}

/// Waits until a unit runs for the `times`th time after its first, and says so.
fn runs(machine: &Machine, unit: &str, times: &str, says: &str) {
    wait_for("the unit", || {
        let [state, restarts, text] =
            ["ActiveState", "NRestarts", "StatusText"].map(|name| machine.property(unit, name));
        let (state, restarts, text) = (state?, restarts?, text?);
        Ok((state == "active" && restarts == times && text.contains(says)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", machine.log()));
}

/// Stops a unit; it ends well and leaves nobody.
fn stops(machine: &Machine, unit: &str) {
    machine.ok(&format!("systemctl stop {unit}")).unwrap();
    let property = |name: &str| machine.property(unit, name).unwrap();
    assert_eq!(
        (property("ActiveState"), property("Result")),
        ("inactive".into(), "success".into()),
        "{}",
        machine.log()
    );
    assert_eq!(machine.ok("ls /sys/fs/cgroup/system.slice").unwrap().lines().filter(|line| *line == unit).count(), 0);
}

#[test]
fn a_node_runs_as_a_service() {
    if !is_root() {
        return;
    }
    let machine = machine();
    // As docs/operations.md says; the watchdog is given less time, so that the test has not to wait for it.
    machine
        .ok("systemd-creds setup && mkdir -p /etc/credstore.encrypted && \
             printf 'a passphrase\n' >/root/passphrase && chmod 600 /root/passphrase && \
             systemd-creds encrypt --name=openred.passphrase /root/passphrase /etc/credstore.encrypted/openred.passphrase && \
             openred --home /var/lib/openred init --name alice --listen 127.0.0.1:7690 --passphrase-file /root/passphrase && \
             rm /root/passphrase && \
             mkdir -p /run/systemd/system/openred.service.d && \
             printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/openred.service.d/test.conf && systemctl daemon-reload")
        .unwrap();
    const READY: &str = "every layer seen";
    machine.ok("systemctl start openred.service").unwrap();
    runs(&machine, "openred.service", "0", READY);
    let doctor = json(&machine, &format!("{OPENRED} doctor")).unwrap();
    assert_eq!((&doctor["ok"], &doctor["uid"]), (&true.into(), &"separate".into()), "{doctor}");
    // A child that is killed is the supervisor's to start again, not systemd's.
    let (noded, ..) = process(&machine, "noded").unwrap();
    machine.ok(&format!("kill -9 {noded}")).unwrap();
    wait_for("another noded", || {
        let (pid, restarts, state) = process(&machine, "noded")?;
        Ok((pid != noded && restarts == 1 && state == "ready").then_some(()))
    })
    .unwrap();
    machine.ok("systemctl reload openred.service").unwrap();
    runs(&machine, "openred.service", "0", READY);
    // Fed for longer than its time, and no longer when it hangs.
    let fed = || machine.property("openred.service", "WatchdogTimestampMonotonic").unwrap().parse::<u64>().unwrap();
    let first = fed();
    wait_for("the watchdog to be fed", || Ok((fed() > first + 4_000_000).then_some(()))).unwrap();
    runs(&machine, "openred.service", "0", READY);
    machine.ok("kill -STOP $(systemctl show --property MainPID --value openred.service)").unwrap();
    runs(&machine, "openred.service", "1", READY);
    assert!(machine.log().contains("Watchdog timeout"), "{}", machine.log());
    machine.ok("kill -9 $(systemctl show --property MainPID --value openred.service)").unwrap();
    runs(&machine, "openred.service", "2", READY);
    assert_eq!(json(&machine, &format!("{OPENRED} doctor")).unwrap()["ok"], true);
    stops(&machine, "openred.service");
    // The control: without its credential it does not start, and says why.
    machine.ok("rm /etc/credstore.encrypted/openred.passphrase").unwrap();
    assert_ne!(machine.run("systemctl start openred.service").unwrap().code, 0);
    assert!(machine.log().contains("no passphrase was given"), "{}", machine.log());
    // Nor does systemd try it again and again: what is missing has to be brought first.
    wait_for("the end of the unit", || {
        Ok((machine.property("openred.service", "ActiveState")? == "failed").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", machine.log()));
    assert_eq!(machine.property("openred.service", "NRestarts").unwrap(), "0", "{}", machine.log());
    machine.ok("systemctl stop openred.service").unwrap();
}

#[test]
fn a_directory_runs_as_a_service() {
    if !is_root() {
        return;
    }
    let machine = machine();
    machine
        .ok("useradd --system --user-group --no-create-home --home-dir /var/lib/openred-directory \
             --shell /usr/sbin/nologin openred-directory && chown openred-directory: /var/lib/openred-directory")
        .unwrap();
    const READY: &str = "serving as did:key:";
    machine.ok("systemctl start directory.socket directory.service").unwrap();
    runs(&machine, "directory.service", "0", READY);
    let answers = || {
        let asked = "exec 3<>/dev/tcp/127.0.0.1/7440; printf 'GET /health HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n' >&3; cat <&3";
        assert!(machine.ok(asked).unwrap().starts_with("HTTP/1.1 "), "{}", machine.log());
    };
    answers();
    let doctor = json(&machine, "directory --json --home /var/lib/openred-directory doctor").unwrap();
    assert_eq!(doctor["ok"], true, "{doctor}");
    machine.ok("kill -9 $(systemctl show --property MainPID --value directory.service)").unwrap();
    runs(&machine, "directory.service", "1", READY);
    answers();
    stops(&machine, "directory.service");
    machine.ok("systemctl stop directory.socket").unwrap();
}
