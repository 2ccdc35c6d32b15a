"""ConvexAdam with MIND features (Siebert et al. 2021), the package's defaults, on the CPU. Measured with 0.2.0."""

PACKAGE, MODULE = "convexadam", "convexAdam"
SETTINGS = {"mind": {"selected_niter": "80"}}
LADDER = {"mind": [{"selected_niter": n} for n in ("1", "20", "80")]}


def register(fixed, moving, out, threads, *, selected_niter):
    import nibabel
    import numpy as np
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(threads)
    images = [nibabel.Nifti1Image.from_filename(path) for path in (fixed, moving)]
    affine = np.asarray(images[0].affine)
    arrays = [np.asarray(image.dataobj, dtype=np.float32) for image in images]
    voxels = convex_adam_pt(
        *arrays, selected_niter=int(selected_niter), dtype=torch.float32, device=torch.device("cpu")
    )
    vectors = np.asarray(voxels, dtype=np.float64) @ affine[:3, :3].T * [-1, -1, 1]  # LPS millimetres
    field = nibabel.Nifti1Image(vectors[:, :, :, None].astype(np.float32), affine)
    field.header.set_intent(1007)
    nibabel.save(field, out)
