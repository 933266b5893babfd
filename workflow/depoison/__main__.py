import sys

try:
    from depoison.cli import main

    sys.exit(main())
except KeyboardInterrupt:  # while it was being imported
    sys.exit(130)
