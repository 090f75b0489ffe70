//! A disk that is really full: the real program, caged, with its home on a small tmpfs that is filled to the last byte.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use nix::unistd::{getegid, geteuid};

use crate::fixture::{HOUR, Node, json};
use crate::process::{Place, Serving, now, places};

/// Lines of its log that are kept until somebody looks.
const LINES: usize = 1024;

/// Mounts the disk in its own mount namespace, then does what it is told, one word a line.
const SCRIPT: &str = r#"
disk=$1; shift
mount -t tmpfs -o size=4m,mode=0755 openred "$disk" || exit 1
while read -r order; do
    case $order in
        serve) "$@" >/dev/null & serving=$!; echo serving ;;
        kill) kill -9 $serving; wait $serving; echo killed ;;
        fill) cat /dev/zero >"$disk/fill" 2>/dev/null; echo filled ;;
        end) exit ;;
        free) rm "$disk/fill"; echo freed ;;
    esac
done
"#;

/// A shell that holds the mount namespace with the disk, and the directory that it starts there.
struct Disk {
    shell: Child,
    orders: ChildStdin,
    answers: BufReader<std::process::ChildStdout>,
    said: Receiver<String>,
}

impl Disk {
    fn mount(place: &Place) -> Self {
        let disk = place.folder.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        let root = place.user.is_none() && geteuid().is_root();
        let mut command = Command::new("unshare");
        // An ordinary user may mount a tmpfs as root of a user namespace of his; the directory's own cage needs as much, so
        // where this cannot be had no directory can run either.
        command.args(if root { &["--mount"][..] } else { &["--user", "--map-root-user", "--mount"] });
        command.args(["sh", "-c", SCRIPT, "sh"]).arg(&disk);
        if !root {
            // In a namespace inside that one he is himself again: otherwise the directory would take him for root.
            let (uid, gid) = (place.user.unwrap_or(geteuid().as_raw()), place.user.unwrap_or(getegid().as_raw()));
            command.args(["unshare", "--user", &format!("--map-user={uid}"), &format!("--map-group={gid}")]);
        }
        command.arg(&place.program).arg("--home").arg(disk.join("home"));
        command.arg("--config").arg(place.home().join("directory.toml")).arg("serve");
        if let Some(user) = place.user {
            command.uid(user).gid(user);
        }
        let command = command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let lines = BufReader::new(shell.stderr.take().unwrap()).lines();
        let (told, said) = sync_channel(LINES);
        // What nobody waits for is dropped, so that the directory never waits for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(told.try_send(line))));
        let (orders, answers) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        Self { shell, orders, answers, said }
    }

    /// Has the shell do something; what it says.
    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the shell has ended: could the disk not be mounted?");
        answer.trim().to_owned()
    }

    fn serve(&mut self) -> Serving {
        assert_eq!(self.order("serve"), "serving");
        let mut before = Vec::new();
        loop {
            let line = self.said.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("it did not come up: {before:?}"));
            match line.split_once("address=") {
                Some((_, address)) => return Serving::at(address),
                None => before.push(line),
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The shell ends with its orders; what it started must not outlive it.
        let _ = writeln!(self.orders, "kill\nend");
        let _ = self.shell.wait();
    }
}

/// All of them are held.
fn are_held(serving: &Serving, nodes: &[Node]) {
    for node in nodes {
        assert_eq!(serving.get(&format!("/api/v3/nodes/{}", node.id())).0, 200, "{}", node.id());
    }
    let (status, page) = serving.get("/api/v3/nodes/discover");
    assert_eq!((status, page["nodes"].as_array().unwrap().len()), (200, nodes.len()));
}

#[test]
fn a_full_disk_is_a_clear_refusal_loses_nothing_and_heals_by_itself() {
    for place in places() {
        let mut disk = Disk::mount(&place);
        let serving = disk.serve();
        let mut held: Vec<Node> = (1..=3).map(Node::new).collect();
        assert!(held.iter().all(|node| serving.register(node).0 == 200));

        assert_eq!(disk.order("fill"), "filled");
        // The database may have some room left in what it took before.
        let (refused, answer) = (10..60)
            .find_map(|seed| {
                let node = Node::new(seed);
                let answer = serving.register(&node);
                if answer.0 != 200 {
                    return Some((node, answer));
                }
                held.push(node);
                None
            })
            .expect("the disk is full");
        for (status, problem) in [answer, serving.register(&refused), serving.register(&held[0])] {
            assert_eq!((status, &problem["code"]), (503, &"directory.full".into()), "{problem}");
            assert_eq!(problem["help"], "Try another directory, or ask the operator.");
        }
        are_held(&serving, &held);
        assert_eq!(serving.get(&format!("/api/v3/nodes/{}", refused.id())).0, 404);
        let (status, health) = serving.get("/api/v3/health");
        assert_eq!((status, &health["conditions"][0]["ok"]), (503, &false.into()), "{health}");
        let offer = held[0].offer(&held[1].id(), now().plus(HOUR), 1);
        let path = "/api/v3/tokens/request-connection";
        assert_eq!(serving.call(&held[0], "POST", path, &json("offer", &offer)).0, 200, "offers need no disk");

        assert_eq!(disk.order("free"), "freed");
        assert_eq!(serving.register(&refused).0, 200, "without a restart");
        held.push(refused);
        assert_eq!(serving.get("/api/v3/health").0, 200);
        are_held(&serving, &held);
        assert_eq!(disk.order("kill"), "killed");
        are_held(&disk.serve(), &held);
    }
}
