"""elastix's default B-spline registration (Klein et al. 2010) by itk-elastix. Measured with 0.25.4.

Four resolutions, Mattes information with bending energy, 2048 random samples, a grid of 10 mm. Threads are set for ITK
as a whole: 0.25.4 crashed with a number of its own.
"""

PACKAGE, MODULE = "itk-elastix", "itk"
SETTINGS = {"bspline": {"iterations": "256"}}
LADDER = {"bspline": [{"iterations": n} for n in ("32", "64", "128", "256")]}


def register(fixed, moving, out, threads, *, iterations):
    import os

    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    import itk

    images = [itk.imread(path, itk.F) for path in (fixed, moving)]
    parameters = itk.ParameterObject.New()
    chosen = parameters.GetDefaultParameterMap("bspline", 4)
    chosen["MaximumNumberOfIterations"] = (iterations,)
    parameters.AddParameterMap(chosen)
    _, transform = itk.elastix_registration_method(*images, parameter_object=parameters, log_to_console=False)
    itk.imwrite(itk.transformix_deformation_field(images[1], transform), out)
