"""ANTs SyN (Avants et al. 2008) by antspyx, without an affine stage. Measured with 0.6.3."""

PACKAGE, MODULE = "antspyx", "ants"
SETTINGS = {
    "mi": {"reg_iterations": "40x20x0"},  # the package's default: Mattes, 32 bins
    "cc": {"reg_iterations": "100x70x20", "syn_metric": "CC", "syn_sampling": 4},
}
LADDER = {
    "mi": [{"reg_iterations": "10x0x0"}, {"reg_iterations": "40x0x0"}, {"reg_iterations": "40x20x0"}],
    "cc": [{"reg_iterations": "100x0x0"}, {"reg_iterations": "100x70x0"}, {"reg_iterations": "100x70x20"}],
}


def register(fixed, moving, out, threads, *, reg_iterations, **options):
    import os
    import shutil

    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    import ants

    images = ants.image_read(fixed), ants.image_read(moving)
    found = ants.registration(
        *images,
        type_of_transform="SyNOnly",
        reg_iterations=tuple(int(n) for n in reg_iterations.split("x")),
        **options,
    )
    (warp,) = [file for file in found["fwdtransforms"] if file.endswith("Warp.nii.gz")]
    shutil.move(warp, out)
