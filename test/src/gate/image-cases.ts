/** Pictures of the gate's corpus, format by format. */

import type { GateCase } from './cases.ts'
import { heicCases } from './heic-cases.ts'
import { hostileImageCases } from './hostile-image-cases.ts'
import { jpegCases } from './jpeg-cases.ts'
import { pngCases } from './png-cases.ts'
import { tiffAndBmpCases } from './tiff-and-bmp-cases.ts'
import { tiffRasterCases } from './tiff-raster-cases.ts'
import { webCases } from './web-cases.ts'
import { wornPictureCases } from './worn-picture-cases.ts'

export const imageCases: readonly GateCase[] = [
  ...jpegCases,
  ...pngCases,
  ...wornPictureCases,
  ...webCases,
  ...tiffAndBmpCases,
  ...tiffRasterCases,
  ...heicCases,
  ...hostileImageCases,
]
