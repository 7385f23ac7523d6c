//! How much memory this process can have at most.

use std::{fs, path::Path, sync::LazyLock};

/// All memory and swap of the machine, or of the control group that this process runs in where that has less: what a container is
/// given. Read once.
pub(crate) fn bytes_max() -> usize {
    static MOST: LazyLock<usize> = LazyLock::new(|| {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limit = group_limit(Path::new("/sys/fs/cgroup"), &groups).unwrap_or(u64::MAX);
        usize::try_from(limit.min(machine())).unwrap_or(usize::MAX)
    });
    *MOST
}

fn machine() -> u64 {
    let info = rustix::system::sysinfo();
    u64::try_from(u128::from(info.totalram + info.totalswap) * u128::from(info.mem_unit)).unwrap_or(u64::MAX)
}

/// The lowest limit of the group and those above it. `groups` is `/proc/self/cgroup`: lines `id:controllers:path`, without controllers
/// in version 2 (cgroups(7)).
fn group_limit(root: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        match controllers {
            "" => lowest(root, group, "memory.max", Some("memory.swap.max")),
            _ if controllers.split(',').any(|name| name == "memory") => {
                lowest(&root.join("memory"), group, "memory.limit_in_bytes", None)
            }
            _ => None,
        }
    });
    limits.min()
}

fn lowest(root: &Path, group: &str, file: &str, swap: Option<&str>) -> Option<u64> {
    let read = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let inside = root.join(group.trim_start_matches('/'));
    // In a namespace of its own a container sees its group at the root.
    let folders = inside.ancestors().take_while(|folder| folder.starts_with(root)).chain([root]);
    let limit = |folder: &Path| {
        let memory = read(folder, file)?;
        Some(memory.saturating_add(swap.and_then(|swap| read(folder, swap)).unwrap_or(0)))
    };
    folders.filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_above_a_process_is_found() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("pod/memory.max", "1000\n");
        write("pod/memory.swap.max", "50\n");
        write("pod/app/memory.max", "max\n");
        write("memory/old/memory.limit_in_bytes", "700\n");
        let of = |groups: &str| group_limit(root.path(), groups);
        assert_eq!(of("0::/pod/app\n"), Some(1050));
        assert_eq!(of("0::/pod\n"), Some(1050));
        assert_eq!(of("0::/other\n"), None);
        assert_eq!(of("4:cpu,memory:/old\n0::/\n"), Some(700));
        assert_eq!(of("4:cpu:/old\nnonsense\n"), None);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(bytes_max() > 1 << 20);
    }
}
