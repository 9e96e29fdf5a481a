//! Compiles the protos with protox, so that no `protoc` is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let files = [
        "csi/v1/csi.proto",
        "cleat/v1/session.proto",
        "cleat/v1/operator.proto",
        "pluginregistration/v1/registration.proto",
    ];
    let descriptors = protox::compile(files.map(|file| root.join(file)), [root])?;
    tonic_prost_build::configure()
        // What a caller sends as `secrets`, and what agents authenticate with, must not reach a log by way of a
        // derived Debug.
        .skip_debug([
            "csi.v1.CreateVolumeRequest",
            "csi.v1.DeleteVolumeRequest",
            "csi.v1.ControllerPublishVolumeRequest",
            "csi.v1.ControllerUnpublishVolumeRequest",
            "csi.v1.ValidateVolumeCapabilitiesRequest",
            "csi.v1.NodeStageVolumeRequest",
            "csi.v1.NodePublishVolumeRequest",
            "cleat.v1.Attach",
            "cleat.v1.Rekey",
            "cleat.v1.TokenRenewal",
        ])
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
