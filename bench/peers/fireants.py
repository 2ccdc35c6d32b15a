"""FireANTs' greedy registration (Jena et al. 2024), on a GPU alone. Written from its documentation: never run here."""

PACKAGE, MODULE, NEEDS = "fireants", "fireants", "no GPU"
SETTINGS = {"greedy": {"iterations": "200x100x25"}}
LADDER = {"greedy": [{"iterations": n} for n in ("200x0x0", "200x100x0", "200x100x25")]}


def usable():
    import torch

    return torch.cuda.is_available()


def register(fixed, moving, out, threads, *, iterations):
    from fireants.io import BatchedImages, Image
    from fireants.registration import GreedyRegistration

    images = [BatchedImages([Image.load_file(path, device="cuda")]) for path in (fixed, moving)]
    found = GreedyRegistration(
        scales=[4, 2, 1],
        iterations=[int(n) for n in iterations.split("x")],
        fixed_images=images[0],
        moving_images=images[1],
        loss_type="cc",
        cc_kernel_size=5,
        deformation_type="compositive",
        smooth_grad_sigma=1,
        optimizer="Adam",
        optimizer_lr=0.5,
    )
    found.optimize()
    found.save_as_ants_transforms(out)
