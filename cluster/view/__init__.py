"""The browser application `fsl-dist view`: routes, pages and limits; what it shows comes from `fsl_dist.viewing`."""
