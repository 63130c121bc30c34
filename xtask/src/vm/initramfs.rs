//! The first files of a machine: busybox, the modules that lead to this machine's root, and a script that mounts it.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::kernels::Kernel;
use crate::shell::{find_program, printed};

/// What leads to the root: the bus, the transport, the file system, and the layer that takes the changes.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Process 1 until the root is there. `switch_root` is run by process 1, so that the kernel's own calls of
/// `/sbin/modprobe` see the new root, too.
const INIT: &str = include_str!("init.sh");

/// Writes the archive for a kernel; `room` is an empty folder.
pub(super) fn write(kernel: &Kernel, room: &Path) -> Result<PathBuf> {
    let tree = room.join("initramfs");
    for folder in ["bin", "modules", "dev", "proc", "sys", "host", "changes", "root"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(find_program("busybox").context("there is no busybox here")?, tree.join("bin/busybox"))?;
    symlink("busybox", tree.join("bin/sh"))?;
    let init = tree.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, Permissions::from_mode(0o755))?;
    let mut order = String::new();
    for (number, module) in modules(kernel)?.iter().enumerate() {
        let name = format!("{number:02}.ko");
        plain(module, &tree.join("modules").join(&name))?;
        order += &format!("{name}\n");
    }
    fs::write(tree.join("modules/order"), order)?;
    pack(&tree, &room.join("initramfs.cpio"))
}

/// The modules' files, each after those that it needs.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let modprobe = find_program("modprobe").context("there is no modprobe here")?;
    let mut files = Vec::new();
    for module in MODULES {
        let mut show = Command::new(&modprobe);
        show.arg("-d").arg(&kernel.base).args(["-S", &kernel.version, "--show-depends", module]);
        let said =
            printed(&mut show).with_context(|| format!("{} has no module {module}", kernel.version))?;
        for line in said.lines() {
            // `builtin NAME` needs no file.
            let Some(file) = line.strip_prefix("insmod ").map(|rest| PathBuf::from(rest.trim())) else {
                continue;
            };
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// Copies a module, unpacked.
fn plain(from: &Path, to: &Path) -> Result<()> {
    if from.extension().is_some_and(|extension| extension == "ko") {
        fs::copy(from, to)?;
        return Ok(());
    }
    let status =
        Command::new("xz").args(["--decompress", "--stdout"]).arg(from).stdout(File::create(to)?).status()?;
    ensure!(status.success(), "xz cannot unpack {}", from.display());
    Ok(())
}

fn pack(tree: &Path, archive: &Path) -> Result<PathBuf> {
    let mut cpio = Command::new("cpio")
        .args(["--create", "--quiet", "--format=newc", "--owner=0:0", "--null"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(File::create(archive)?)
        .spawn()
        .context("start cpio")?;
    let mut names = Vec::new();
    list(tree, Path::new("."), &mut names)?;
    cpio.stdin.take().context("cpio has no stdin")?.write_all(&names)?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(archive.to_owned())
}

/// The names of all files below, folders before what is in them, each ended by a null byte.
fn list(tree: &Path, below: &Path, names: &mut Vec<u8>) -> Result<()> {
    for entry in fs::read_dir(tree.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        names.extend_from_slice(name.as_os_str().as_encoded_bytes());
        names.push(0);
        if entry.file_type()?.is_dir() {
            list(tree, &name, names)?;
        }
    }
    Ok(())
}
