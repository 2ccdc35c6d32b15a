"""Diffeomorphic demons (Vercauteren et al. 2009) by SimpleITK, on three levels; settings chosen for these benchmarks.

Measured with 2.5.7. Histogram matching 256 bins, 10 points; images smoothed by half a voxel of the level.
"""

PACKAGE, MODULE = "SimpleITK", "SimpleITK"
SETTINGS = {"default": {"iterations": "100x100x40", "sigma": "1.5"}}
LADDER = {"default": [{"iterations": n} for n in ("50x0x0", "100x0x0", "100x100x0", "100x100x40")]}


def register(fixed, moving, out, threads, *, iterations, sigma):
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    target, source = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (fixed, moving))
    source = sitk.HistogramMatching(source, target, 256, 10, True)
    field = None
    for shrink, count in zip((4, 2, 1), map(int, iterations.split("x")), strict=True):
        width = [0.5 * shrink * spacing for spacing in target.GetSpacing()]
        factors = [min(shrink, n) for n in target.GetSize()]
        images = [
            sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, width), factors) for image in (target, source)
        ]
        start = field and sitk.Resample(field, images[0])
        if count == 0 and field is not None:
            field = start
            continue
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(count)
        demons.SetStandardDeviations(float(sigma))
        field = demons.Execute(*images, *([start] if start else []))
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), out)
