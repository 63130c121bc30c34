//! A real Docker daemon with its real rules. It changes the machine's own ruleset, so it runs only on a machine that
//! is thrown away afterwards: `cargo xtask vm-test --group docker`.

use std::{
    env, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::symlink, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::LazyLock,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    machine,
    netns::{Door, Netns, checked},
    ruleset::Backend,
    traffic::LONG,
    wait,
};

/// State of the daemon; in memory on every machine with a /run.
const ROOM: &str = "/run/pathtrace-docker";

/// How long a docker command may take; reached only by one that hangs.
static PATIENT: LazyLock<Duration> = LazyLock::new(|| wait::scaled(Duration::from_secs(60)));

/// The name of the image that is made on the spot.
pub const IMAGE: &str = "box";

/// A Docker host: a client behind `ext0`, and a daemon that writes its rules with one backend.
#[derive(Debug)]
pub struct DockerHost {
    backend: Backend,
    daemon: Option<Child>,
    client: Netns,
}

impl DockerHost {
    /// The host's address on the client's side.
    pub const ADDRESS: [u8; 4] = [10, 1, 0, 1];
    /// The client's address.
    pub const CLIENT: [u8; 4] = [10, 1, 0, 2];

    /// Starts from empty rulesets; makes the client, the daemon and the image.
    ///
    /// # Errors
    /// When this machine is not to be changed, has no dockerd, or the daemon does not start.
    pub fn new(backend: Backend) -> Result<Self> {
        ensure!(
            machine::is_disposable(),
            "this test changes the machine's ruleset: run `cargo xtask vm-test --group docker`"
        );
        let client = Netns::new()?;
        sh(&format!("ip link add ext0 type veth peer name eth0 netns {}", client.name()))?;
        sh("ip address add 10.1.0.1/24 dev ext0; ip link set ext0 up")?;
        client.exec("ip address add 10.1.0.2/24 dev eth0")?;
        client.exec("ip link set eth0 up")?;
        client.exec("ip route add default via 10.1.0.1")?;
        tools_of(backend)?;
        let mut host = Self { backend, daemon: None, client };
        host.start_daemon()?;
        make_image()?;
        Ok(host)
    }

    /// Whose rules Docker makes.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The namespace of the client.
    #[must_use]
    pub fn client(&self) -> &Netns {
        &self.client
    }

    /// Starts dockerd and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer in time; tells the end of its log.
    pub fn start_daemon(&mut self) -> Result<()> {
        let log = Path::new(ROOM).join("dockerd.log");
        let mut command = Command::new("dockerd");
        command
            .args(["--storage-driver", "vfs", "--data-root"])
            .arg(Path::new(ROOM).join("data"))
            .env("PATH", search_path()?)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log)?)
            .stderr(fs::File::options().append(true).open(&log)?);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let mut daemon = command.spawn().context("start dockerd")?;
        let mut ended = None;
        let answered = wait::until("dockerd to answer", || {
            ended = daemon.try_wait().ok().flatten();
            ended.is_some() || answers()
        });
        self.daemon = Some(daemon);
        let said = fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<&str> = said.lines().rev().take(15).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        answered.with_context(|| tail.clone())?;
        match ended {
            Some(status) => bail!("dockerd ended with {status}:\n{tail}"),
            None => Ok(()),
        }
    }

    /// Stops dockerd as systemd does: SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop_daemon(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM)?;
        let ended = wait::until("dockerd to end", || daemon.try_wait().is_ok_and(|end| end.is_some()));
        if ended.is_err() {
            daemon.kill()?;
            daemon.wait()?;
        }
        ended
    }

    /// Restores an iptables-save file with the backend's own tool: tables that it names are replaced whole.
    ///
    /// # Errors
    /// When the tool refuses it.
    pub fn restore(&self, file: &str) -> Result<()> {
        let program = format!("iptables-{}-restore", self.backend.suffix());
        let mut child = Command::new(&program).args(["-w", "20"]).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().context("no stdin")?.write_all(file.as_bytes())?;
        ensure!(child.wait()?.success(), "{program} refused:\n{file}");
        Ok(())
    }

    /// Whether a request from the client is answered.
    #[must_use]
    pub fn client_reaches(&self, to: SocketAddr, patience: Duration) -> bool {
        self.client.run(|| http(to, patience))
    }
}

impl Drop for DockerHost {
    fn drop(&mut self) {
        // What fails here is thrown away with the machine.
        drop(docker("ps -aq").map(|all| {
            all.split_whitespace().for_each(|id| drop(docker(&format!("rm -f {id}"))));
        }));
        drop(docker("network prune -f"));
        drop(self.stop_daemon());
        drop(sh("ip link del docker0; ip link del ext0; nft flush ruleset"));
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            for table in ["filter", "nat", "mangle", "raw"] {
                drop(sh(&format!("{program} -t {table} -F; {program} -t {table} -X")));
            }
            drop(sh(&format!("{program} -P FORWARD ACCEPT")));
        }
        drop(fs::remove_dir_all(ROOM));
    }
}

/// One HTTP request from here; whether there was an answer.
#[must_use]
pub fn http(to: SocketAddr, patience: Duration) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut connection = TcpStream::connect_timeout(&to, patience)?;
        connection.set_read_timeout(Some(*LONG))?;
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1."))
}

/// Whether the daemon answers `GET /_ping`; cheaper than a docker command.
fn answers() -> bool {
    let ask = || -> std::io::Result<String> {
        let mut socket = UnixStream::connect("/run/docker.sock")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(" 200 "))
}

/// Runs a docker command (words parted by blanks); what it printed.
///
/// # Errors
/// When it fails; tells its complaint.
pub fn docker(words: &str) -> Result<String> {
    let mut command = Command::new("timeout");
    let limit = PATIENT.as_secs().to_string();
    Ok(checked(command.args([&limit, "docker"]).args(words.split_whitespace()))?.trim().to_owned())
}

/// The IPv4 address of a container, in its only network.
///
/// # Errors
/// When there is no such container.
pub fn address_of(container: &str) -> Result<[u8; 4]> {
    let said = docker(&format!(
        "inspect --format {{{{range.NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}} {container}"
    ))?;
    let address: std::net::Ipv4Addr =
        said.parse().with_context(|| format!("address of {container}: {said:?}"))?;
    Ok(address.octets())
}

/// The way into the namespace of a container.
///
/// # Errors
/// When there is no such container.
pub fn door_of(container: &str) -> Result<Door> {
    let said = docker(&format!("inspect --format {{{{.State.Pid}}}} {container}"))?;
    Door::of_process(said.parse().with_context(|| format!("pid of {container}: {said:?}"))?)
}

/// The device of a Docker network: `docker0`, or `br-` and the beginning of its id.
///
/// # Errors
/// When there is no such network.
pub fn bridge_of(network: &str) -> Result<String> {
    let id = docker(&format!("network inspect --format {{{{.Id}}}} {network}"))?;
    Ok(format!("br-{}", id.get(..12).context("a short network id")?))
}

fn sh(script: &str) -> Result<String> {
    checked(Command::new("sh").args(["-c", script]))
}

/// `iptables` and `ip6tables`, as Docker calls them, of one backend: Debian's alternatives, for the daemon alone.
fn tools_of(backend: Backend) -> Result<()> {
    let folder = tools();
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder)?;
    for tool in ["iptables", "ip6tables"] {
        symlink(format!("/usr/sbin/{tool}-{}", backend.suffix()), folder.join(tool))?;
    }
    Ok(())
}

fn tools() -> PathBuf {
    Path::new(ROOM).join("tools")
}

fn search_path() -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths([tools()].into_iter().chain(env::split_paths(&path)))?)
}

/// An image of one static busybox and a page.
fn make_image() -> Result<()> {
    sh(&format!(
        "set -e; cd {ROOM}; mkdir -p image/bin image/www; cp \"$(command -v busybox)\" image/bin/busybox; \
         for name in sh httpd nslookup ping wget sleep; do ln -sf busybox image/bin/$name; done; \
         echo hello > image/www/index.html; tar -C image -c . | docker import - {IMAGE}"
    ))
    .map(drop)
}
