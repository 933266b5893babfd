import sys

from depoison.cli import main

sys.exit(main())
