//! The Open Container Initiative's bundle of a container, as docker asks for it.

use std::path::Path;

use bothy_guest::protocol::LENT;
use serde_json::{Value, json};

use super::work::LOAD;
use crate::spec::seccomp::{Conditions, docker_profile};
use crate::spec::{docker, oci};

/// What docker asks of a runtime for a container. Without a network namespace it gets a new one.
pub(super) fn specification(root: &Path, lent: &Path, load: &[String], network: Option<&str>) -> Value {
    let args: Vec<&str> = std::iter::once(LOAD).chain(load.iter().map(String::as_str)).collect();
    let container = docker::container("bench", false, &[]);
    let rights = docker::rights(false, false, None);
    let conditions = Conditions { capabilities: rights.capabilities.bounding, ..Conditions::default() };
    let mut mounts = oci::mounts(&container);
    mounts.push(json!({ "destination": LENT, "type": "bind", "source": lent, "options": ["bind", "ro"] }));
    json!({
        "ociVersion": "1.0.2",
        "hostname": container.host_name,
        "root": { "path": root, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=bench", "HOME=/"],
            "cwd": "/",
            "capabilities": oci::capabilities(&rights.capabilities),
            "rlimits": oci::limits(&rights),
        },
        "mounts": mounts,
        "linux": oci::linux(&container, network, Some(&docker_profile().oci(&conditions))),
    })
}
